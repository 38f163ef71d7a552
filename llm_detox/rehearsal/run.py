"""A rehearsal: all steps of a recipe in one process, from the data to the folder that would be served."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llm_detox.data.records import write_jsonl
from llm_detox.progress import say
from llm_detox.recipe import Recipe
from llm_detox.rehearsal.models import ROWS, rude_half, sentence
from llm_detox.rehearsal.stand_ins import rehearsal_of


def rehearse(recipe: Recipe, *, output: Path) -> dict[str, Any]:
    """Run the recipe's own settings on tiny models and data, and write each step's folder into `output`.

    The figures mean nothing. What ran is what the recipe will do: formats, quantisation, optimiser, schedule, pairs,
    merging. A recipe of a judge (`judge.adversarial`) trains and asks the judge instead of comparing arms.

    Args:
        recipe: as it is, with its real models and data; neither is touched.
        output: a folder of steps.

    Returns:
        the figures of the steps by name, and the `verdict` of the gate where there is one.

    Raises:
        DetoxError: a step fails as it would in the real run.
    """
    tiny = rehearsal_of(recipe)
    say(f"rehearsal of {recipe.name}: tiny models and data, the recipe's own settings")
    return _judge(tiny, output) if recipe.judge.adversarial else _arms(tiny, output)


def _arms(recipe: Recipe, output: Path) -> dict[str, Any]:
    """`detox-and-serve` up to the converted model, whatever the gate says."""
    from llm_detox.data.prepare import prepare_data
    from llm_detox.evaluation.evaluate import evaluate
    from llm_detox.evaluation.report import write_report
    from llm_detox.evaluation.stop_hate import measure_refusals
    from llm_detox.export.converting import convert
    from llm_detox.rephrase.detoxify import detoxify
    from llm_detox.training.dpo import train_dpo
    from llm_detox.training.sft import train_sft

    data, rewritten = output / "data", output / "rewritten"
    clean = data / "clean_train.jsonl"
    found: dict[str, Any] = {"data": prepare_data(recipe, output=data)}
    found["detoxify"] = detoxify(recipe, texts=data / "texts.jsonl", output=rewritten)
    for arm, texts in (("raw", data / "texts.jsonl"), ("detoxified", rewritten / "records.jsonl")):
        found[f"sft {arm}"] = train_sft(recipe, texts=texts, clean=clean, output=output / arm)
    found["dpo"] = train_dpo(
        recipe, adapter=output / "detoxified", records=rewritten / "records.jsonl",
        prompts=data / "train_prompts.jsonl", clean=clean, output=output / "dpo")
    arms = {"base": recipe.model.source, **{arm: str(output / arm) for arm in ("raw", "detoxified", "dpo")}}
    for arm, model in arms.items():
        found[f"evaluate {arm}"] = evaluate(
            recipe, model=model, arm=arm, prompts=data / "prompts.jsonl", clean=data / "clean.jsonl",
            output=output / f"evaluate-{arm}")
    compared = write_report(
        recipe, evaluations={arm: output / f"evaluate-{arm}" for arm in arms}, records=rewritten / "records.jsonl",
        steps={"data": data, "detoxify": rewritten}, output=output / "report")
    if recipe.stop_hate.hate:
        found["stop-hate"] = measure_refusals(
            recipe, tuned=str(output / "dpo"), trained_on=data / "texts.jsonl", output=output / "stop-hate")
    found["convert"] = convert(model=str(output / "dpo"), output=output / "model")
    return {**found, "verdict": compared["verdict"]}


def _judge(recipe: Recipe, output: Path) -> dict[str, Any]:
    """The training of a judge and its reading of answers; its labels come ready, a tiny model could not give them."""
    from llm_detox.evaluation.judge_metrics import judge_conversations
    from llm_detox.export.converting import convert
    from llm_detox.judge.build import training_row
    from llm_detox.judge.constitution import load_constitution
    from llm_detox.training.sft import train_sft

    constitution = load_constitution(recipe.judge.constitution)
    output.mkdir(parents=True, exist_ok=True)
    labelled: list[dict[str, Any]] = [
        {"id": str(row), "verdict": "unsafe" if rude_half(row) else "safe",
         "category": next(iter(constitution.categories)) if rude_half(row) else None,
         "evaluation": sentence(row, toxic=False, seed=300),
         "messages": [{"role": "user", "content": sentence(row, toxic=True, seed=301)},
                      {"role": "assistant", "content": sentence(row, toxic=rude_half(row), seed=302)}]}
        for row in range(ROWS)]
    train, test = output / "train.jsonl", output / "test.jsonl"
    write_jsonl(train, (training_row(constitution, record) for record in labelled[ROWS // 4:]))
    write_jsonl(test, ({"id": record["id"], "messages": record["messages"], "label": record["verdict"]}
                       for record in labelled[: ROWS // 4]))
    found: dict[str, Any] = {"sft": train_sft(recipe, texts=train, clean=None, output=output / "judge")}
    found["judge"] = judge_conversations(
        recipe, conversations=test, model=str(output / "judge"), output=output / "judged")
    found["convert"] = convert(model=str(output / "judge"), output=output / "model")
    return found
