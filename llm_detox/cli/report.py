"""`llm-detox report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llm_detox.cli.common import AsJson, Output, Overrides, RecipeFile, existing, read_recipe, show_outcome


def command(
    recipe: RecipeFile,
    evaluations: Annotated[list[str], typer.Option("--arm", help="name=FOLDER of an evaluation, the base first.")],
    output: Output,
    records: Annotated[Path | None, typer.Option(help="The detoxify step's records.jsonl.")] = None,
    steps: Annotated[list[str] | None, typer.Option("--step", help="name=FOLDER of a finished step.")] = None,
    judge: Annotated[Path | None, typer.Option(
        help="What `llm-detox judge` wrote about labelled conversations: its precision and recall.")] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Compare the arms and decide the verdict.

    Writes HTML, Markdown, JSON and a model card. Exit code 3: the gate is not passed.
    """
    settings = read_recipe(recipe, overrides)
    from llm_detox.errors import GateNotPassed
    from llm_detox.evaluation.report import write_report

    result = write_report(settings, evaluations=_named(evaluations, "--arm"), records=records,
                          steps=_named(steps or [], "--step"), output=output,
                          judge=existing(judge, "the judge's folder") if judge else None)
    show_outcome(result, output, as_json)
    if result["verdict"] != "pass":
        raise GateNotPassed(f"the verdict is {result['verdict']}", place=settings.name,
                            remedy=f"reasons: {'; '.join(result['reasons'])}")


def _named(pairs: list[str], option: str) -> dict[str, Path]:
    from llm_detox.errors import UsageError

    named = {}
    for pair in pairs:
        name, separator, folder = pair.partition("=")
        if not separator:
            raise UsageError(f"{pair!r} is not name=FOLDER", place=option,
                             remedy=f"for example {option} base=runs/base")
        named[name] = existing(Path(folder), "the folder")
    return named
