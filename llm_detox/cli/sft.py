"""`llm-detox sft`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llm_detox.cli.common import AsJson, Output, Overrides, RecipeFile, existing, read_recipe, show_outcome


def command(
    recipe: RecipeFile,
    texts: Annotated[Path, typer.Option("--input", help="JSON lines with a text each, or detoxified records.")],
    output: Output,
    clean: Annotated[Path | None, typer.Option(help="Clean passages to mix in, JSON lines.")] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Fine-tune an adapter on text (QLoRA)."""
    settings = read_recipe(recipe, overrides)
    existing(texts, "the input")
    from llm_detox.training.sft import train_sft

    show_outcome(train_sft(settings, texts=texts, clean=clean, output=output), output, as_json)
