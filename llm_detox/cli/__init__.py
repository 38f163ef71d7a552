"""The command line: `llm-detox <step>`. One file for each group of commands; each loads what it needs when called."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer
import typer.core

from llm_detox import __version__
from llm_detox.cli import bench, corpus, detector, measure, models, recipe, runs, serve, steps, train
from llm_detox.errors import DetoxError, disk_error, optional_packages
from llm_detox.progress import one_voice, safe_output, say, visible_json


class _Steps(typer.core.TyperGroup):
    """The steps; `evaluate compare A B` means `compare A B`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        return super().resolve_command(ctx, args[1:] if args[:2] == ["evaluate", "compare"] else args)


app = typer.Typer(
    name="llm-detox", cls=_Steps, no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False,
    rich_markup_mode=None,  # the boxes cost two thirds of the half second that `--help` may take
    help="Make a language model less toxic, measure that it became so, and serve it.",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    if debug:
        os.environ["LLM_DETOX_DEBUG"] = "1"


app.add_typer(recipe.app, name="recipe")
app.add_typer(runs.app, name="runs")
app.add_typer(models.app, name="models")
app.add_typer(models.exports, name="export")
app.add_typer(bench.app, name="bench")
app.add_typer(detector.app, name="detector")
app.command("try")(measure.try_texts)
app.command("quickstart")(recipe.quickstart)
for command in (
    steps.data, steps.detoxify, steps.sft, steps.dpo, steps.evaluate, measure.compare, bench.compare_ui, steps.report,
    steps.convert, steps.publish, steps.deploy, steps.smoke, serve.stop, serve.serve, serve.ask, serve.chat,
    serve.doctor, train.train_scorer, train.train_experts, train.train_paraphraser, train.paraphrase_pairs,
    measure.judge_data, measure.judge, measure.stop_hate, corpus.clean_corpus,
):
    app.command(command.__name__.replace("_", "-"))(command)


def main() -> None:
    """Run the command line."""
    run_app(app)


def run_app(command: typer.Typer) -> None:
    """Run a command line: an error that the user can act on is one message, without a traceback."""
    one_voice()
    with safe_output():
        try:
            with optional_packages():
                command()
        except KeyboardInterrupt:
            say("interrupted; steps that keep their work continue where they stopped")
            sys.exit(130)
        except Exception as error:
            clear = error if isinstance(error, DetoxError) else disk_error(error, "the disk", "choose another folder")
            if clear is None or os.environ.get("LLM_DETOX_DEBUG"):
                raise
            if "--json" in sys.argv:
                print(visible_json({"error": clear.message, "place": clear.place, "remedy": clear.remedy}))
            say(f"error: {clear}")
            sys.exit(clear.exit_code)
