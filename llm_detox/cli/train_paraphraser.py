"""`llm-detox train-paraphraser`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llm_detox.cli.common import AsJson, Output, Overrides, RecipeFile, existing, read_recipe, show_outcome


def command(
    recipe: RecipeFile,
    pairs: Annotated[Path, typer.Option("--input", help="ParaDetox TSV (rude text, rewrites), or JSON lines.")],
    output: Output,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Train a model that rewrites rude text politely. It learns from pairs."""
    settings = read_recipe(recipe, overrides)
    existing(pairs, "the input")
    from llm_detox.training.train_rewriters import train_paraphraser

    show_outcome(train_paraphraser(settings, pairs=pairs, output=output), output, as_json)
