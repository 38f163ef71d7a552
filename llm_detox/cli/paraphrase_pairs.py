"""`llm-detox paraphrase-pairs`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llm_detox.cli.common import AsJson, Output, Overrides, RecipeFile, existing, read_recipe, show_outcome


def command(
    recipe: RecipeFile,
    pairs: Annotated[Path, typer.Option("--input", help="What train-paraphraser reads.")],
    output: Output,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Make preference pairs of a paraphraser's own rewrites. They are for `dpo`."""
    settings = read_recipe(recipe, overrides)
    existing(pairs, "the input")
    from llm_detox.rephrase.paraphrase_pairs import paraphrase_pairs

    show_outcome(paraphrase_pairs(settings, pairs=pairs, output=output), output, as_json)
