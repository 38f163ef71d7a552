"""`llm-detox judge-data`."""

from __future__ import annotations

from llm_detox.cli.common import AsJson, Output, Overrides, RecipeFile, read_recipe, show_outcome


def command(recipe: RecipeFile, output: Output, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Build what a judge is tuned and tested on. Writes train.jsonl, for sft, and test.jsonl, for judge."""
    settings = read_recipe(recipe, overrides)
    from llm_detox.judge.build import build_judge_data

    show_outcome(build_judge_data(settings, output=output), output, as_json)
