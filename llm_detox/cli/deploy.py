"""`llm-detox deploy`."""

from __future__ import annotations

from typing import Annotated

import typer

from llm_detox.cli.common import AsJson, Output, Overrides, RecipeFile, read_recipe, show_outcome
from llm_detox.progress import say


def command(
    recipe: RecipeFile,
    address: Annotated[str, typer.Option("--input", "--address", help="The s3:// address that `publish` printed.")],
    output: Output,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Serve a published model; it goes on after this command, until `llm-detox stop DIR`."""
    settings = read_recipe(recipe, overrides)
    from llm_detox.deploy.step import deploy

    show_outcome(deploy(settings, address=address, output=output), output, as_json)
    say(f"end it with: llm-detox stop {output}")
