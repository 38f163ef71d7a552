"""The command line: `llm-detox <step>`. Each subcommand is a file of its own that loads what it needs when called."""

from __future__ import annotations

import json
import os
import sys
from typing import Annotated, Any

import typer
import typer.core

from llm_detox import __version__
from llm_detox.cli import (
    ask,
    bench,
    chat,
    compare,
    compare_ui,
    convert,
    data,
    deploy,
    detoxify,
    doctor,
    dpo,
    evaluate,
    export,
    judge,
    judge_data,
    models,
    paraphrase_pairs,
    publish,
    recipe,
    report,
    serve,
    sft,
    smoke,
    stop,
    stop_hate,
    train_experts,
    train_paraphraser,
    train_scorer,
)
from llm_detox.errors import DetoxError
from llm_detox.progress import one_voice


class _Steps(typer.core.TyperGroup):
    """The steps, where `evaluate compare A B` may be said for `compare A B`."""

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
app.add_typer(models.app, name="models")
app.add_typer(export.app, name="export")
app.add_typer(bench.app, name="bench")
for module in (data, detoxify, sft, dpo, evaluate, compare, compare_ui, report, convert, publish, deploy, smoke, stop,
               serve, ask, chat, doctor, train_scorer, train_experts, train_paraphraser,
               paraphrase_pairs, judge_data, judge, stop_hate):
    app.command(module.__name__.rpartition(".")[2].replace("_", "-"))(module.command)


def main() -> None:
    """Run the command line."""
    run_app(app)


def run_app(command: typer.Typer) -> None:
    """Run a command line: an error that the user can act on is one message, without a traceback."""
    one_voice()
    try:
        command()
    except DetoxError as error:
        if os.environ.get("LLM_DETOX_DEBUG"):
            raise
        if "--json" in sys.argv:
            print(json.dumps({"error": error.message, "place": error.place, "remedy": error.remedy}))
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted; steps that keep their work go on where they stopped", file=sys.stderr)
        sys.exit(130)
