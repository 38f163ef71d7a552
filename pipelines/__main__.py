"""`python -m pipelines run|compile|stop`."""

from __future__ import annotations

import filecmp
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from llm_detox.cli import run_app
from llm_detox.cli.common import Overrides, RecipeFile, read_recipe

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False,
                  help="Run the pipelines on this machine, or compile them for a cluster.")
Runs = Annotated[Path, typer.Option(help="Where runs are kept.")]


@app.command()
def run(
    recipe: RecipeFile,
    overrides: Overrides = None,
    runs: Runs = Path("runs"),
    keep_serving: Annotated[bool, typer.Option(help="Leave the store and the model running.")] = False,
    fresh: Annotated[bool, typer.Option(help="Do every step anew, also those an earlier run finished.")] = False,
) -> None:
    """Run detox-and-serve whole on this machine. Exit code 3: the model did not pass the gate."""
    settings = read_recipe(recipe, overrides)
    from pipelines.local import run_locally
    from pipelines.outcome import show_outcome

    outcome = run_locally(settings, runs=runs, keep_serving=keep_serving, fresh=fresh)
    show_outcome(outcome, keep_serving=keep_serving)


@app.command()
def stop(recipe: RecipeFile, overrides: Overrides = None, runs: Runs = Path("runs")) -> None:
    """End what `run --keep-serving` left running."""
    settings = read_recipe(recipe, overrides)
    from pipelines.local import stop_kept

    stop_kept(runs, settings.name)


@app.command("compile")
def compile_pipelines(
    check: Annotated[bool, typer.Option(help="Write nothing; fail if the committed YAML is not current.")] = False,
) -> None:
    """Write pipelines/compiled/*.yaml."""
    from llm_detox.errors import DetoxError
    from pipelines.compile import COMPILED, compile_all

    if not check:
        for path in compile_all():
            print(f"written {path}")
        return
    with tempfile.TemporaryDirectory() as folder:
        for path in compile_all(Path(folder)):
            committed = COMPILED / path.name
            if not committed.exists() or not filecmp.cmp(path, committed, shallow=False):
                raise DetoxError("the compiled pipeline is not current", place=str(committed),
                                 remedy="python -m pipelines compile")
    print("the compiled pipelines are current")


if __name__ == "__main__":
    run_app(app)
