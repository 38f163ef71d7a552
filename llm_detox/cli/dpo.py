"""`llm-detox dpo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llm_detox.cli.common import AsJson, Output, Overrides, RecipeFile, existing, read_recipe, show_outcome


def command(
    recipe: RecipeFile,
    adapter: Annotated[Path, typer.Option(help="The SFT step's folder.")],
    output: Output,
    records: Annotated[Path | None, typer.Option(help="The detoxify step's records.jsonl; needed for rewrite_pairs.")]
    = None,
    prompts: Annotated[Path | None, typer.Option(help="Prompts for sampled pairs, JSON lines; needed for max_pairs.")]
    = None,
    clean: Annotated[Path | None, typer.Option(help="Clean passages to keep fluency, JSON lines.")] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Train the adapter further on preference pairs (DPO)."""
    settings = read_recipe(recipe, overrides)
    for path, what in ((adapter, "the adapter"), (records, "the records file"), (prompts, "the prompts file")):
        if path:
            existing(path, what)
    from llm_detox.training.dpo import train_dpo

    result = train_dpo(settings, adapter=adapter, records=records, prompts=prompts, clean=clean, output=output)
    show_outcome(result, output, as_json)
