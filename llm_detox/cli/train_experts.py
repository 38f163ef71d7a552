"""`llm-detox train-experts`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llm_detox.cli.common import AsJson, Output, Overrides, RecipeFile, existing, read_recipe, show_outcome


def command(
    recipe: RecipeFile,
    texts: Annotated[Path, typer.Option("--input", help='JSON lines {"text", "toxic": true or false}.')],
    output: Output,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Train the expert and the anti-expert of MaRCo. They learn from labelled text."""
    settings = read_recipe(recipe, overrides)
    existing(texts, "the input")
    from llm_detox.training.train_rewriters import train_experts

    show_outcome(train_experts(settings, texts=texts, output=output), output, as_json)
