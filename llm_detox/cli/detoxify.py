"""`llm-detox detoxify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llm_detox.cli.common import AsJson, Output, Overrides, RecipeFile, existing, read_recipe, show_outcome


def command(
    recipe: RecipeFile,
    texts: Annotated[Path, typer.Option("--input", help='JSON lines {"id", "text"}; id may be missing.')],
    output: Output,
    shard: Annotated[str, typer.Option(help="i/n: only the i-th of n parts, counted from 0.")] = "0/1",
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Rewrite the toxic records. Each keeps its original, its scores and the reason."""
    settings = read_recipe(recipe, overrides)
    existing(texts, "the input")
    from llm_detox.rephrase.detoxify import detoxify
    from llm_detox.runs.shards import read_shard

    show_outcome(detoxify(settings, texts=texts, output=output, shard=read_shard(shard)), output, as_json)
