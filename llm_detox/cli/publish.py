"""`llm-detox publish`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llm_detox.cli.common import AsJson, Overrides, existing, read_recipe, show_outcome
from llm_detox.errors import UsageError


def command(
    folder: Annotated[Path, typer.Argument(help="What `convert` wrote.", show_default=False)],
    url: Annotated[str | None, typer.Argument(help="s3://bucket/prefix; else the recipe's publish.url.")] = None,
    recipe: Annotated[Path | None, typer.Option("--recipe", help="The experiment's YAML file.")] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Put a converted model into S3. Prints its content address."""
    if url is None:
        if recipe is None:
            raise UsageError("where to?", place="publish", remedy="give s3://bucket/prefix, or --recipe")
        url = read_recipe(recipe, overrides).publish.url
    existing(folder, "the folder")
    from llm_detox.storage import publish

    result = publish(folder, url)
    if as_json:
        show_outcome(result, None, as_json)
    else:
        print(result["address"])
