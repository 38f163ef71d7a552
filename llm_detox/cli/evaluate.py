"""`llm-detox evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llm_detox.cli.common import AsJson, Output, Overrides, RecipeFile, existing, read_recipe, show_outcome


def command(
    recipe: RecipeFile,
    model: Annotated[str, typer.Option(help="Hub id, folder, s3://, package://, an adapter folder, or an address: "
                                      "grpc://HOST:PORT/NAME, http://..., fmaas://..., openai+http://...")],
    prompts: Annotated[Path, typer.Option(help='RealToxicityPrompts records or {"prompt": "..."} lines.')],
    output: Output,
    clean: Annotated[Path | None, typer.Option(help="Clean passages for perplexity, JSON lines.")] = None,
    arm: Annotated[str, typer.Option(help="The name of this model in the report.")] = "model",
    generations: Annotated[
        list[Path] | None, typer.Option(help="Score these continuations instead of sampling: generations.jsonl of "
                                             "shards, or of another tool. Repeatable.")] = None,
    shard: Annotated[str | None, typer.Option(help="i/n: only the i-th of n parts, counted from 0.")] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Measure how toxic and how fluent a model writes.

    `evaluate compare A B` sets two or more evaluations beside each other.
    """
    settings = read_recipe(recipe, overrides)
    for path in (prompts, *(generations or ())):
        existing(path, "the file")
    from llm_detox.evaluation.evaluate import evaluate
    from llm_detox.runs.shards import read_shard

    result = evaluate(settings, model=model, arm=arm, prompts=prompts, clean=clean, output=output,
                      generations=generations or (), shard=read_shard(shard) if shard else None)
    show_outcome(result, output, as_json)
