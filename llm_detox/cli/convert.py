"""`llm-detox convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llm_detox.cli.common import AsJson, Output, Overrides, show_outcome


def command(
    model: Annotated[str, typer.Option("--model", "--input", help="Adapter or model folder, hub id, s3://, package://")],
    output: Output,
    card: Annotated[Path | None, typer.Option(help="Model card, or the report folder that holds it.")] = None,
    oldest_reader: Annotated[
        str | None, typer.Option(help="Refuse what this transformers release cannot read.")] = None,
    verify_with: Annotated[
        list[str] | None, typer.Option(help="A Python that must read the same greedy tokens. Repeatable.")] = None,
    recipe: Annotated[Path | None, typer.Option(hidden=True)] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Merge the adapter into a folder to serve. Caikit, TGIS and vLLM load it."""
    from llm_detox.export import convert

    result = convert(model=model, output=output, card=card, oldest_reader=oldest_reader)
    if verify_with:
        from llm_detox.export.verify import verify

        result = {**result, "verified": verify(output, verify_with)["readers"]}
    show_outcome(result, output, as_json)
