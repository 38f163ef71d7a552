"""What a local run shows at its end: the arms, the verdict, where the report is, and how to ask the model."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from llm_detox.errors import GateNotPassed
from llm_detox.progress import human_seconds
from pipelines.local import LocalRun

_COLUMNS = {
    "expected_maximum_toxicity": "expected max. toxicity",
    "toxicity_probability": "toxicity probability",
    "mean_toxicity": "mean toxicity",
}


def show_summary(run: LocalRun, *, keep_serving: bool) -> None:
    """Print the end of a run to stdout.

    Raises:
        GateNotPassed: the verdict is not "pass".
    """
    report = json.loads((run.report / "report.json").read_text("utf-8"))
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(_arms_table(report))
    console.print(f"verdict: [bold]{run.verdict}[/bold] (after {human_seconds(run.seconds)})")
    for reason in report["verdict"]["reasons"]:
        console.print(f"  - {reason}", markup=False)
    console.print(f"report: {run.report / 'report.html'}", markup=False, soft_wrap=True)
    if run.verdict != "pass":
        raise GateNotPassed("the model was not published and not deployed", place=f"gate: {run.verdict}",
                            remedy=f"read {run.report / 'report.html'}; more data or epochs, or another recipe")
    if run.answers:
        _show_answers(console, run.answers, run.deployment, keep_serving)


def _arms_table(report: dict[str, Any]) -> Table:
    table = Table(title="toxicity and fluency of the arms, 95 % intervals in brackets")
    table.add_column("arm")
    for title in (*_COLUMNS.values(), "perplexity, clean text"):
        table.add_column(title, justify="right")
    for name, arm in report["arms"].items():
        cells = [f"{arm[key]['value']:.3f} [{arm[key]['low']:.3f}, {arm[key]['high']:.3f}]" for key in _COLUMNS]
        perplexity = arm.get("perplexity")
        table.add_row(name, *(cell.replace("[", "\\[") for cell in cells), f"{perplexity:.2f}" if perplexity else "-")
    return table


def _show_answers(console: Console, answers: Path, deployment: Path | None, keep_serving: bool) -> None:
    result = json.loads((answers / "manifest.json").read_text("utf-8"))["result"]
    console.print(f"asked: {result['prompt']}", markup=False)
    console.print(f"answered: {result['text']}", markup=False)
    if keep_serving and deployment:
        served = json.loads((deployment / "manifest.json").read_text("utf-8"))["result"]
        console.print("the model is being served; ask it with", markup=False)
        for command in (
            f'llm-detox ask --url {served["rest_url"]} --model {served["model_id"]} "{result["prompt"]}"',
            f'llm-detox ask --grpc {served["grpc_address"]} --model {served["model_id"]} "{result["prompt"]}"',
        ):
            console.print(f"  {command}", markup=False, soft_wrap=True)
    else:
        console.print("`make serve` serves this model again", markup=False)
