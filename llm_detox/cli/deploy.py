"""`llm-detox deploy`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from llm_detox.cli.common import AsJson, Output, Overrides, RecipeFile, read_recipe, show_outcome
from llm_detox.progress import say

if TYPE_CHECKING:
    from llm_detox.recipe import Recipe


def command(
    recipe: RecipeFile,
    address: Annotated[str, typer.Option("--input", "--address", help="The s3:// address that `publish` printed.")],
    output: Output,
    overrides: Overrides = None,
    dry_run: Annotated[bool, typer.Option(
        "--dry-run", help="KServe: let the cluster check what would be sent, print it as YAML, and keep nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Serve a published model until `llm-detox stop DIR`. This command itself ends when it is ready."""
    settings = read_recipe(recipe, overrides)
    if dry_run:
        _show_dry_run(settings, address)
        return
    from llm_detox.serve.deploy import deploy

    show_outcome(deploy(settings, address=address, output=output), output, as_json)
    if settings.deploy.target == "local":
        say(f"end it with: llm-detox stop {output}")


def _show_dry_run(recipe: Recipe, address: str) -> None:
    from llm_detox.errors import UsageError

    if recipe.deploy.target != "kserve":
        raise UsageError("a local deployment sends nothing", place="--dry-run", remedy="--set deploy.target=kserve")
    from llm_detox.serve.kserve.deploy import dry_run

    print(dry_run(recipe, address=address), end="")
