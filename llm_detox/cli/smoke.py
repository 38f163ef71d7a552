"""`llm-detox smoke`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llm_detox.cli.common import AsJson, Output, Overrides, RecipeFile, existing, read_recipe, show_outcome


def command(
    recipe: RecipeFile,
    deployment: Annotated[Path, typer.Option("--input", "--deployment", help="The folder that `deploy` wrote.")],
    output: Output,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Ask a deployed model over REST and gRPC. Whole and streamed answers are scored."""
    settings = read_recipe(recipe, overrides)
    existing(deployment, "the deployment")
    from llm_detox.serve.smoke import smoke

    show_outcome(smoke(settings, deployment=deployment, output=output), output, as_json)
