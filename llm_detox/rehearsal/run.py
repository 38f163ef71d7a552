"""A rehearsal: all steps of a recipe in one process, from the data to the folder that would be served.

Every source of the recipe is replaced by a tiny one; every setting is kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_detox.data.records import Record, write_jsonl
from llm_detox.progress import say
from llm_detox.recipe import Recipe
from llm_detox.recipe.data import TEMPLATE_FIELD
from llm_detox.rehearsal.models import ROWS, rude_half, sentence, table, tiny_model
from llm_detox.runs.artifacts import (
    ARMS,
    BASE,
    DETOXIFIED,
    DPO,
    FILTERED,
    RAW,
    DataFolder,
    JudgeDataFolder,
    RewrittenFolder,
)
from llm_detox.runs.cache import cache_dir
from llm_detox.runs.folders import digest_of

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    StepResult = DataclassInstance | Mapping[str, Any]


def rehearse(recipe: Recipe, *, output: Path) -> dict[str, StepResult]:
    """Run the recipe's own settings on tiny models and data, and write each step's folder into `output`.

    The figures mean nothing. What ran is what the recipe will do: formats, quantisation, optimiser, schedule, pairs,
    merging. A recipe of a judge (`judge.adversarial`) trains and asks the judge instead of comparing arms.

    Args:
        recipe: as it is, with its real models and data; neither is touched.
        output: a folder of steps.

    Returns:
        step -> what it returned.

    Raises:
        DetoxError: a step fails as it would in the real run.
    """
    tiny = rehearsal_of(recipe)
    say(f"rehearsal of {recipe.name}: tiny models and data, the recipe's own settings")
    return _rehearse_judge(tiny, output) if recipe.judge.adversarial else _rehearse_arms(tiny, output)


def _rehearse_arms(recipe: Recipe, output: Path) -> dict[str, StepResult]:
    """`detox-and-serve` up to the converted model, whatever the gate says."""
    from llm_detox.data.prepare import prepare_data
    from llm_detox.evaluation.evaluate import evaluate
    from llm_detox.evaluation.report import write_report
    from llm_detox.evaluation.stop_hate import measure_refusals
    from llm_detox.export.converting import convert
    from llm_detox.rephrase.detoxify import detoxify
    from llm_detox.training.dpo import train_dpo
    from llm_detox.training.sft import train_sft

    data, rewritten = DataFolder(output / "data"), RewrittenFolder(output / "rewritten")
    steps: dict[str, StepResult] = {"data": prepare_data(recipe, output=data.path)}
    steps["detoxify"] = detoxify(recipe, texts=data.texts, output=rewritten.path)
    for arm, texts in ((RAW, data.texts), (FILTERED, rewritten.kept), (DETOXIFIED, rewritten.records)):
        steps[f"sft {arm}"] = train_sft(recipe, texts=texts, clean=data.clean_train, output=output / arm)
    steps["dpo"] = train_dpo(
        recipe, adapter=output / DETOXIFIED, records=rewritten.records, prompts=data.train_prompts,
        clean=data.clean_train, output=output / DPO)
    evaluations = {arm: output / f"evaluate-{arm}" for arm in ARMS}
    for arm, folder in evaluations.items():
        model = recipe.model.source if arm == BASE else str(output / arm)
        steps[f"evaluate {arm}"] = evaluate(recipe, model=model, arm=arm, prompts=data.prompts, clean=data.clean,
                                            output=folder)
    steps["report"] = write_report(
        recipe, evaluations=evaluations, records=rewritten.records,
        steps={"data": data.path, "detoxify": rewritten.path}, output=output / "report")
    if recipe.stop_hate.hate:
        steps["stop-hate"] = measure_refusals(
            recipe, tuned=str(output / DPO), trained_on=data.texts, output=output / "stop-hate")
    steps["convert"] = convert(model=str(output / DPO), output=output / "model")
    return steps


def _rehearse_judge(recipe: Recipe, output: Path) -> dict[str, StepResult]:
    """The training of a judge and its reading of answers; its labels come ready, a tiny model could not give them."""
    from llm_detox.evaluation.verdicts import judge_conversations
    from llm_detox.export.converting import convert
    from llm_detox.judge.build import training_row
    from llm_detox.judge.judge import load_constitution
    from llm_detox.training.sft import train_sft

    constitution = load_constitution(recipe.judge.constitution, recipe.judge.question)
    output.mkdir(parents=True, exist_ok=True)
    labelled: list[Record] = [
        {"id": str(row), "verdict": "unsafe" if rude_half(row) else "safe",
         "category": next(iter(constitution.categories)) if rude_half(row) else None,
         "evaluation": sentence(row, toxic=False, seed=300),
         "messages": [{"role": "user", "content": sentence(row, toxic=True, seed=301)},
                      {"role": "assistant", "content": sentence(row, toxic=rude_half(row), seed=302)}]}
        for row in range(ROWS)]
    files, test = JudgeDataFolder(output), ROWS // 4
    write_jsonl(files.train, (training_row(constitution, record) for record in labelled[test:]))
    write_jsonl(files.test, ({"id": record["id"], "messages": record["messages"], "label": record["verdict"]}
                             for record in labelled[:test]))
    steps: dict[str, StepResult] = {"sft": train_sft(recipe, texts=files.train, clean=None, output=output / "judge")}
    steps["judge"] = judge_conversations(
        recipe, conversations=files.test, model=str(output / "judge"), output=output / "judged")
    steps["convert"] = convert(model=str(output / "judge"), output=output / "model")
    return steps


def rehearsal_of(recipe: Recipe) -> Recipe:
    """The recipe with its models and data swapped for tiny ones of the same architecture and columns.

    Scorers are replaced by packaged n-gram ones, fitted to the tiny data; sizes are not scaled to the machine.

    Raises:
        DetoxError: there is no tiny model of an architecture.
    """
    values = recipe.model_dump(mode="json")
    folder = cache_dir("tiny", f"data-{digest_of(values)[:12]}")
    values["name"] = f"{recipe.name}-tiny"
    values["model"] = {"source": str(tiny_model(recipe.model.source))}
    values["budget"]["scale"] = 1.0
    values["evaluation"]["fluency_model"] = _model(recipe.evaluation.fluency_model)
    values["scoring"] = {name: {"kind": "ngram", "source": _labelled(folder / f"{name}.csv", seed)}
                         for seed, name in enumerate(("training", "judging"), start=1)}
    values["scoring"]["others"] = [{"kind": "ngram", "source": _labelled(folder / f"other-{seed}.csv", seed)}
                                   for seed in range(3, 3 + len(recipe.scoring.others))]
    _swap_data(values["data"], folder)
    _swap_side_effects(values["evaluation"]["side_effects"], folder)
    _swap_detoxify(values["detoxify"])
    values["rephraser_training"]["base"] = _model(recipe.rephraser_training.base)
    for number, pairs in enumerate(values["training"]["dpo"]["pairs"]):
        _swap_rows(pairs, folder / f"pairs-{number}.jsonl", _pairs(pairs))
    values["training"]["job"]["nodes"] = 1
    _swap_chats(values, folder)
    if recipe.evaluation.judged_prompts:
        values["judge"]["reader"]["model"] = values["model"]["source"]
    return Recipe.model_validate(values)


def _model(source: str | None, seed: int = 0) -> str | None:
    return str(tiny_model(source, seed=seed)) if source else None


def _labelled(path: Path, seed: int) -> str:
    rows = [f'{int(rude_half(number))},"{sentence(number, toxic=rude_half(number), seed=seed)}"'
            for number in range(400)]
    path.write_text("is_offensive,text\n" + "\n".join(rows) + "\n", "utf-8")
    return str(path)


def _swap_data(data: dict[str, Any], folder: Path) -> None:
    texts = data["texts"]
    _swap_rows(texts, folder / DataFolder.texts, _texts(texts))
    for number, benign in enumerate(texts["benign"]):
        _swap_rows(benign, folder / f"benign-{number}.jsonl", (
            {benign["text_column"]: sentence(row, toxic=False, seed=20 + number),
             benign["answer_column"]: sentence(row, toxic=False, seed=40 + number)} for row in range(ROWS // 2)))
    for number, prompts in enumerate(data["prompts"]["sources"]):
        name = prompts["text_column"]
        score = {"prompt.toxicity": 0.9} if name == "prompt.text" else {}
        _swap_rows(prompts, folder / f"prompts-{number}.jsonl", (
            {name: sentence(row, toxic=rude_half(row), seed=60 + number).rpartition(" and ")[0], **score}
            for row in range(ROWS)))
    for number, clean in enumerate(data["clean"]["sources"]):
        _swap_rows(clean, folder / f"clean-{number}.jsonl", (
            {clean["text_column"]: " ".join(sentence(4 * row + part, toxic=False, seed=80 + number)
                                            for part in range(4))} for row in range(ROWS)))


def _swap_side_effects(effects: dict[str, Any], folder: Path) -> None:
    for name, questions in effects["capabilities"].items():
        column = questions["passage_column"]
        passage = {column: sentence(0, toxic=False, seed=400)} if column else {}
        _swap_rows(questions, folder / f"capability-{name}.jsonl", (
            {**passage, questions["question_column"]: sentence(row, toxic=False, seed=401),
             questions["options_column"]: f"A. {sentence(row, toxic=False, seed=402)}\nB. number {row}",
             questions["answer_column"]: f"B. number {row}"} for row in range(ROWS)))
    for name, texts in effects["registers"].items():
        _swap_rows(texts, folder / f"register-{name}.jsonl", (
            {texts["text_column"]: sentence(row, toxic=False, seed=403)} for row in range(ROWS)))
    for name, pairs in effects["stereotypes"].items():
        _swap_rows(pairs, folder / f"stereotype-{name}.jsonl", (
            {pairs["stereotype_column"]: sentence(row, toxic=True, seed=404),
             pairs["other_column"]: sentence(row, toxic=False, seed=405)} for row in range(ROWS)))


def _swap_rows(rows: dict[str, Any], path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Tiny records in place of a source, with the values that it chooses by."""
    rows |= {"source": table(path, ({**record, **rows["where"]} for record in records)), "files": None}


def _texts(texts: dict[str, Any]) -> Iterator[dict[str, Any]]:
    columns = TEMPLATE_FIELD.findall(texts["template"]) if texts["template"] else [texts["text_column"]]
    for row in range(ROWS):
        values: dict[str, Any] = {
            name: sentence(row, toxic=rude_half(row), seed=100 + place) for place, name in enumerate(columns)}
        if texts["label_column"]:
            values[texts["label_column"]] = int(rude_half(row))
        if texts["answer_column"]:
            values[texts["answer_column"]] = sentence(row, toxic=False, seed=150)
        yield values


def _pairs(pairs: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for row in range(ROWS // 2):
        asked, calm, rude = (sentence(row, toxic=toxic, seed=200 + place)
                             for place, toxic in enumerate((False, False, True)))
        lead = "" if pairs["prompt_column"] else f"\n\nHuman: {asked}\n\nAssistant: "
        values = {pairs["prompt_column"]: asked} if pairs["prompt_column"] else {}
        yield values | {pairs["chosen_column"]: lead + calm, pairs["rejected_column"]: lead + rude}


def _swap_detoxify(detoxify: dict[str, Any]) -> None:
    """Only the models of methods that the recipe uses."""
    methods = detoxify["methods"]
    if "tmarco" in methods:
        settings = detoxify["tmarco"]
        settings["base"] = _model(settings["base"])
        settings["experts"] = [_model(source, number) for number, source in enumerate(settings["experts"], start=1)]
    if "marco" in methods:
        settings = detoxify["marco"]
        for number, name in enumerate(("base", "expert", "anti_expert")):
            settings[name] = _model(settings[name], number)
    for name in ("paraphrase", "instruct"):
        if name in methods:
            detoxify[name] |= {"model": _model(detoxify[name]["model"]), "url": None}
    detoxify["causal"] |= {"expert": None, "anti_expert": None}
    detoxify["fluency_model"] = _model(detoxify["fluency_model"])
    if not str(detoxify["similarity_model"]).startswith("package://"):
        detoxify["similarity_model"] = None


def _swap_chats(values: dict[str, Any], folder: Path) -> None:
    """The conversations and models of the judge and of the refusal of hate."""
    for section in ("judge", "stop_hate"):
        for kind in ("adversarial", "hate", "benign"):
            for number, chats in enumerate(values[section].get(kind, [])):
                _swap_rows(chats, folder / f"{section}-{kind}-{number}.jsonl", (
                    {chats["column"]: sentence(row, toxic=kind != "benign", seed=250 + number)}
                    for row in range(ROWS)))
        models = [values[section].get(name) for name in ("generator", "reader", "answer")]
        for model in filter(None, [*models, *values[section].get("labellers", [])]):
            model |= {"model": None, "template": None}
