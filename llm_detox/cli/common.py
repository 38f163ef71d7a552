"""What the subcommands share: the recipe options, and how an outcome is printed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from llm_detox.recipe import Recipe

RecipeFile = Annotated[Path, typer.Option("--recipe", help="The experiment's YAML file.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a recipe value: training.sft.learning_rate=1e-4. Repeatable."),
]
Output = Annotated[Path, typer.Option("--output", help="The folder to write; it must not exist.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print the outcome as one JSON object on stdout.")]


def read_recipe(path: Path, overrides: list[str] | None) -> Recipe:
    from llm_detox.recipe.files import load_recipe

    return load_recipe(path, overrides or ())


def existing(path: Path, what: str) -> Path:
    """An input that must be there before any work starts."""
    from llm_detox.errors import UsageError

    if not path.exists():
        raise UsageError(f"{what} does not exist", place=str(path),
                         remedy="check the path, or run the step that writes it")
    return path


def show_outcome(result: dict[str, Any], output: Path | None, as_json: bool) -> None:
    """The step's result: one JSON object on stdout, or a few readable lines."""
    if as_json:
        print(json.dumps({**result, **({"output": str(output)} if output else {})}, ensure_ascii=False))
        return
    for name, value in result.items():
        if isinstance(value, str | int | float | bool):
            print(f"{name}: {value}")
    if output:
        print(f"written to {output}")
