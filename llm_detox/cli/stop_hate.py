"""`llm-detox stop-hate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llm_detox.cli.common import AsJson, Output, Overrides, RecipeFile, existing, read_recipe, show_outcome


def command(
    recipe: RecipeFile,
    output: Output,
    model: Annotated[str | None, typer.Option(help="The tuned model: a folder, an adapter or an address.")] = None,
    trained_on: Annotated[Path | None, typer.Option(help="The training's JSON lines: its requests are not asked "
                                                   "again.")] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Measure whether a chat model refuses hate, nothing else. Three arms: base, system prompt, tuned."""
    settings = read_recipe(recipe, overrides)
    if trained_on:
        existing(trained_on, "the training file")
    from llm_detox.evaluation.stop_hate import measure_refusals

    result = measure_refusals(settings, tuned=model, trained_on=trained_on, output=output)
    show_outcome(result, output, as_json)
