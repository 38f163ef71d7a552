"""`llm-detox doctor`."""

from __future__ import annotations

import json

import typer

from llm_detox.cli.common import AsJson, Overrides, RecipeFile, read_recipe


def command(recipe: RecipeFile, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Check, before a run, that all it needs is there. Exit code 1 where something is missing."""
    settings = read_recipe(recipe, overrides)
    from llm_detox.doctor import examine
    from llm_detox.doctor.finding import summary

    findings = examine(settings)
    outcome = summary(findings)
    print(json.dumps(outcome, ensure_ascii=False) if as_json else "\n".join(one.line() for one in findings))
    if not outcome["ready"]:
        raise typer.Exit(1)
