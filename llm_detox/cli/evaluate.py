"""`llm-detox evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llm_detox.cli.common import AsJson, Output, Overrides, RecipeFile, existing, read_recipe, show_outcome


def command(
    recipe: RecipeFile,
    model: Annotated[str, typer.Option(help="Hub id, folder, s3://, package:// or an adapter folder.")],
    prompts: Annotated[Path, typer.Option(help='RealToxicityPrompts records or {"prompt": "..."} lines.')],
    output: Output,
    clean: Annotated[Path | None, typer.Option(help="Clean passages for perplexity, JSON lines.")] = None,
    arm: Annotated[str, typer.Option(help="The name of this model in the report.")] = "model",
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Measure how toxic and how fluent a model's continuations are."""
    settings = read_recipe(recipe, overrides)
    existing(prompts, "the prompts file")
    from llm_detox.evaluation.evaluate import evaluate

    result = evaluate(settings, model=model, arm=arm, prompts=prompts, clean=clean, output=output)
    show_outcome(result, output, as_json)
