"""The recipe of a rehearsal: every source replaced by a tiny one, every setting kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llm_detox.data.prepare import TEMPLATE_FIELD
from llm_detox.recipe import Recipe
from llm_detox.rehearsal.models import ROWS, rude_half, sentence, table, tiny_model
from llm_detox.runs.folders import cache_dir, digest_of


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
    _swap_data(values["data"], folder)
    _swap_detoxify(values["detoxify"])
    values["rephraser_training"]["base"] = _model(recipe.rephraser_training.base)
    for number, pairs in enumerate(values["training"]["dpo"]["pairs"]):
        pairs["source"] = _pairs(folder / f"pairs-{number}.jsonl", pairs)
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
    texts["source"] = _texts(folder / "texts.jsonl", texts)
    for number, benign in enumerate(texts["benign"]):
        benign["source"] = table(folder / f"benign-{number}.jsonl", (
            {benign["text_column"]: sentence(row, toxic=False, seed=20 + number),
             benign["answer_column"]: sentence(row, toxic=False, seed=40 + number)} for row in range(ROWS // 2)))
    for number, prompts in enumerate(data["prompts"]["sources"]):
        name = prompts["text_column"]
        score = {"prompt.toxicity": 0.9} if name == "prompt.text" else {}
        prompts["source"] = table(folder / f"prompts-{number}.jsonl", (
            {name: sentence(row, toxic=rude_half(row), seed=60 + number).rpartition(" and ")[0], **score}
            for row in range(ROWS)))
    for number, clean in enumerate(data["clean"]["sources"]):
        clean["source"] = table(folder / f"clean-{number}.jsonl", (
            {clean["text_column"]: " ".join(sentence(4 * row + part, toxic=False, seed=80 + number)
                                            for part in range(4))} for row in range(ROWS)))


def _texts(path: Path, texts: dict[str, Any]) -> str:
    columns = TEMPLATE_FIELD.findall(texts["template"]) if texts["template"] else [texts["text_column"]]
    rows = []
    for row in range(ROWS):
        values: dict[str, Any] = {
            name: sentence(row, toxic=rude_half(row), seed=100 + place) for place, name in enumerate(columns)}
        if texts["label_column"]:
            values[texts["label_column"]] = int(rude_half(row))
        if texts["answer_column"]:
            values[texts["answer_column"]] = sentence(row, toxic=False, seed=150)
        rows.append(values)
    return table(path, rows)


def _pairs(path: Path, pairs: dict[str, Any]) -> str:
    rows = []
    for row in range(ROWS // 2):
        asked, calm, rude = (sentence(row, toxic=toxic, seed=200 + place)
                             for place, toxic in enumerate((False, False, True)))
        lead = "" if pairs["prompt_column"] else f"\n\nHuman: {asked}\n\nAssistant: "
        values = {pairs["prompt_column"]: asked} if pairs["prompt_column"] else {}
        rows.append(values | {pairs["chosen_column"]: lead + calm, pairs["rejected_column"]: lead + rude})
    return table(path, rows)


def _swap_detoxify(detoxify: dict[str, Any]) -> None:
    """Only the models of methods that the recipe uses."""
    methods = detoxify["methods"]
    if "tmarco" in methods:
        how = detoxify["tmarco"]
        how["base"] = _model(how["base"])
        how["experts"] = [_model(source, number) for number, source in enumerate(how["experts"], start=1)]
    if "marco" in methods:
        how = detoxify["marco"]
        for number, name in enumerate(("base", "expert", "anti_expert")):
            how[name] = _model(how[name], number)
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
                chats["source"] = table(folder / f"{section}-{kind}-{number}.jsonl", (
                    {chats["column"]: sentence(row, toxic=kind != "benign", seed=250 + number), **chats["where"]}
                    for row in range(ROWS)))
        for name in ("generator", "labeller", "reader", "answer"):
            if name in values[section]:
                values[section][name] |= {"model": None, "template": None}
