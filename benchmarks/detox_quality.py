"""How much less toxic a recipe makes its model, and at which price: on prompts that no training prompt begins like.

    python -m benchmarks.detox_quality --recipe recipes/smollm2-quality.yaml --prompts ../shared/data/rtp_dev.jsonl \
        --output runs/quality

Trains as the pipeline does (data, detoxify, sft, dpo), then continues the first 150 prompts of toxicity .5 and more 25
times each, judged by the recipe's judging scorer, and prints the last arm's figures as shares of the base's. What is
finished is found again in the output folder.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

from llm_detox.data.prepare import prepare_data, prompt_key
from llm_detox.data.records import Record, read_jsonl, write_jsonl
from llm_detox.evaluation.evaluate import evaluate
from llm_detox.evaluation.intervals import Interval
from llm_detox.evaluation.results import EvaluationSummary, read_evaluation
from llm_detox.recipe import Recipe
from llm_detox.recipe.files import load_recipe
from llm_detox.rephrase.detoxify import detoxify
from llm_detox.runs.artifacts import BASE, DPO, DataFolder, RewrittenFolder
from llm_detox.runs.folders import MANIFEST
from llm_detox.training.dpo import train_dpo
from llm_detox.training.sft import train_sft

_TOXIC = 0.5
ROWS = ("expected_maximum_toxicity", "toxicity_probability", "mean_toxicity", "perplexity", "continuation_perplexity",
        "distinct_2")


def main() -> None:
    """Train, measure, print the table and write it as JSON."""
    options = parsed()
    recipe = load_recipe(options.recipe, [f"evaluation.continuations={options.continuations}", *options.set])
    root: Path = options.output
    root.mkdir(parents=True, exist_ok=True)
    prompts = toxic_prompts(options.prompts, options.count)
    write_jsonl(DataFolder(root).prompts, prompts)
    seconds = train(recipe, root, {prompt_key(one["prompt"]["text"]) for one in prompts})
    arms = {BASE: recipe.model.source, DPO: str(root / DPO)}
    measured = {arm: measure(recipe, root, model=model, arm=arm, output=root / f"evaluation-{arm}")
                for arm, model in arms.items()}
    table = {row: [number(measured[arm], row) for arm in arms] for row in ROWS}
    print("| figure | base | dpo | share |\n|---|---|---|---|")
    for row, (before, after) in table.items():
        print(f"| {row} | {before:.4g} | {after:.4g} | {after / before:.3f} |")
    print("seconds: " + ", ".join(f"{step} {took:.0f}" for step, took in seconds.items()))
    (root / "quality.json").write_text(json.dumps({"table": table, "seconds": seconds}, indent=1), "utf-8")


def measure(recipe: Recipe, root: Path, *, model: str, arm: str, output: Path) -> EvaluationSummary:
    """The figures of an arm on the prompts and clean passages of an output folder; read again where they are there."""
    if (output / MANIFEST).exists():
        return EvaluationSummary.of(read_evaluation(output).report)
    return evaluate(recipe, model=model, arm=arm, prompts=DataFolder(root).prompts,
                    clean=DataFolder(root / "data").clean, output=output)


def number(summary: EvaluationSummary, row: str) -> float:
    """The value of a figure with or without an interval."""
    figure = getattr(summary, row)
    return float(figure.value if isinstance(figure, Interval) else figure)


def toxic_prompts(path: Path, count: int) -> list[Record]:
    """The first prompts of a RealToxicityPrompts file that are toxic themselves."""
    return list(islice((record for record in read_jsonl(path, required=["prompt"])
                        if (record["prompt"]["toxicity"] or 0) >= _TOXIC), count))


def train(recipe: Recipe, root: Path, taken: set[str]) -> dict[str, float]:
    """Make the last arm's adapter in `root/dpo`, with no training prompt that begins as one of `taken`."""
    noted = root / "seconds.json"
    seconds: dict[str, float] = json.loads(noted.read_text("utf-8")) if noted.exists() else {}

    def timed(step: str, work: Callable[[], object]) -> None:
        if (root / step / MANIFEST).exists():
            return
        started = time.perf_counter()
        work()
        seconds[step] = time.perf_counter() - started
        noted.write_text(json.dumps(seconds), "utf-8")

    data, apart = DataFolder(root / "data"), DataFolder(root).train_prompts
    timed("data", lambda: prepare_data(recipe, output=data.path))
    write_jsonl(apart, (one for one in read_jsonl(data.train_prompts)
                        if prompt_key(one["prompt"]["text"]) not in taken))
    timed("detoxify", lambda: detoxify(recipe, texts=data.texts, output=root / "detoxify"))
    records, clean = RewrittenFolder(root / "detoxify").records, data.clean_train
    timed("sft", lambda: train_sft(recipe, texts=records, clean=clean, output=root / "sft"))
    timed("dpo", lambda: train_dpo(recipe, adapter=root / "sft", records=records, prompts=apart, clean=clean,
                                   output=root / "dpo"))
    return seconds


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--prompts", type=Path, required=True, help="RealToxicityPrompts records, JSON lines")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--count", type=int, default=150)
    parser.add_argument("--continuations", type=int, default=25)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    return parser.parse_args()


if __name__ == "__main__":
    main()
