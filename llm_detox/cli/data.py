"""`llm-detox data`."""

from __future__ import annotations

from llm_detox.cli.common import AsJson, Output, Overrides, RecipeFile, read_recipe, show_outcome


def command(recipe: RecipeFile, output: Output, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Read, clean and split the texts and the prompts."""
    settings = read_recipe(recipe, overrides)
    from llm_detox.data.prepare import prepare_data

    show_outcome(prepare_data(settings, output=output), output, as_json)
