"""`llm-detox recipe show|validate|schema|reference|rehearse`, and quickstart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from llm_detox.cli.common import AsJson, Overrides, existing, read_recipe, show_outcome
from llm_detox.progress import visible_json

app = typer.Typer(no_args_is_help=True, help="Show, check or rehearse a recipe.")
File = Annotated[Path, typer.Argument(help="The recipe's YAML file.", show_default=False)]


@app.command()
def show(
    file: File,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option(
        "--json", help="Print one line of JSON, the form of a pipeline's parameter.")] = False,
) -> None:
    """Print the recipe with every default filled in."""
    recipe = read_recipe(file, overrides)
    if as_json:
        print(visible_json(recipe.model_dump(mode="json")))
        return
    from llm_detox.recipe.files import recipe_yaml

    print(recipe_yaml(recipe), end="")


@app.command()
def validate(file: File, overrides: Overrides = None) -> None:
    """Check the recipe as a whole; nothing is run."""
    recipe = read_recipe(file, overrides)
    print(f"{file}: the recipe {recipe.name!r} is valid")


@app.command()
def schema() -> None:
    """Print the JSON schema. Every key has its type, default and meaning."""
    from llm_detox.recipe import Recipe

    print(json.dumps(Recipe.model_json_schema(), indent=2))


@app.command()
def reference() -> None:
    """Print every key as Markdown. With values, defaults and meanings: docs/configuration.md."""
    from llm_detox.recipe.reference import reference as page

    print(page(), end="")


@app.command()
def rehearse(
    file: File,
    output: Annotated[Path | None, typer.Option(help="Keep the steps' folders in this folder.")] = None,
    overrides: Overrides = None,
) -> None:
    """Run the recipe's own settings on tiny models and data. Minutes at most, on any machine."""
    import tempfile

    recipe = read_recipe(file, overrides)
    from llm_detox.rehearsal.run import rehearse as run

    with tempfile.TemporaryDirectory() as scratch:
        steps = run(recipe, output=output or Path(scratch) / "rehearsal")
    print(f"{file}: all {len(steps)} steps ran; their figures mean nothing")


def quickstart(
    table: Annotated[Path, typer.Argument(help="A table or a folder of tables: CSV, TSV, JSONL, Parquet.",
                                          show_default=False)],
    text: Annotated[str, typer.Option("--text", help="The column with the texts.", show_default=False)],
    label: Annotated[str | None, typer.Option(
        "--label", help="The column that is 1 for toxic texts and 0 for others; without it a scorer decides.")] = None,
    output: Annotated[Path | None, typer.Option(
        "--output", help="The recipe to write; the default is the table's name with .yaml, here.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write a recipe for your own table of texts. It is sized for this machine, whose time for a run is said."""
    existing(table, "the table")
    from llm_detox.rehearsal.quickstart import quickstart as run

    result = run(table, text=text, label=label, recipe=output or Path(f"{table.name.partition('.')[0]}.yaml"))
    if as_json:
        show_outcome({**vars(result), "recipe": str(result.recipe)}, None, True)
        return
    about = "" if label else "about "
    print(f"{table}: {result.usable:,} texts can be used, {about}{result.usable_toxic:,} of them toxic")
    print(f"{result.recipe}: {result.count:,} texts, {about}{result.toxic:,} of them toxic")
    print(f"a run takes some {result.minutes} minutes on this machine ({result.gflops:.0f} GFLOP/s):")
    print(f"  python -m pipelines run --recipe {result.recipe}")
