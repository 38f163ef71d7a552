"""The local runs that are kept: runs list, show, remove."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llm_detox.cli.common import AsJson, show_outcome
from llm_detox.progress import human_bytes, human_seconds, say, visible

if TYPE_CHECKING:
    from datetime import datetime

app = typer.Typer(no_args_is_help=True, help="See and remove what local runs keep.")
Runs = Annotated[Path, typer.Option("--runs", help="Where runs are kept.")]
Name = Annotated[str, typer.Argument(help="The recipe's name, as `runs list` shows it.", show_default=False)]


@app.command("list")
def list_runs(runs: Runs = Path("runs"), as_json: AsJson = False) -> None:
    """List the recipes that were run here: size, verdict, and when the last step ended."""
    from llm_detox.serve.kept_runs import kept_runs

    found = kept_runs(runs)
    if as_json:
        show_outcome({"runs": [_values(one.name, one.path, one.bytes, one.state, one.verdict, one.changed)
                               for one in found]}, None, True)
        return
    if not found:
        say(f"{runs}: no runs are kept here")
        return
    wide = max(len("run"), *(len(visible(one.name)) for one in found))
    print(f"{'run':<{wide}}  {'size':>9}  {'state':<8}  {'verdict':<17}  last step ended (UTC)")
    for one in found:
        print(f"{visible(one.name):<{wide}}  {human_bytes(one.bytes):>9}  {one.state:<8}  {one.verdict or '-':<17}  "
              f"{_minute(one.changed)}")


@app.command()
def show(name: Name, runs: Runs = Path("runs"), as_json: AsJson = False) -> None:
    """Show a run's finished steps with their times and sizes, its verdict and its report."""
    from llm_detox.serve.kept_runs import kept_run

    run = kept_run(runs, name)
    if as_json:
        steps = [{"step": step.name, "kind": step.kind, "seconds": step.seconds, "bytes": step.bytes,
                  "path": str(step.path)} for step in run.steps]
        show_outcome({**_values(run.name, run.path, run.bytes, run.state, run.verdict, run.changed), "steps": steps,
                      "report": str(run.page) if run.page else None}, None, True)
        return
    print(f"{visible(run.name)}: {run.state}, {human_bytes(run.bytes)} in {run.path}")
    wide = max((len(step.name) for step in run.steps), default=0)
    for step in run.steps:
        print(f"  {step.name:<{wide}}  {human_seconds(step.seconds):>7}  {human_bytes(step.bytes):>9}  {step.path}")
    print(f"verdict: {run.verdict or 'none yet'}")
    if run.page:
        print(f"report: {run.page}")


@app.command()
def remove(
    name: Name,
    runs: Runs = Path("runs"),
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask first.")] = False,
) -> None:
    """Stop what a run left serving, and remove all that is kept of it."""
    from llm_detox.serve.kept_runs import kept_run, remove_run

    run = kept_run(runs, name)
    if not yes:
        typer.confirm(f"remove {run.path} ({human_bytes(run.bytes)}, {run.state})?", abort=True)
    print(f"removed {run.path}: {human_bytes(remove_run(runs, name))} are free again")


def _values(name: str, path: Path, size: int, state: str, verdict: str | None,
            changed: datetime | None) -> dict[str, object]:
    return {"run": name, "path": str(path), "bytes": size, "state": state, "verdict": verdict,
            "changed": changed.isoformat() if changed else None}


def _minute(moment: datetime | None) -> str:
    return f"{moment:%Y-%m-%d %H:%M}" if moment else "-"
