"""What a local run shows at its end: the arms, the verdict, where the report is, and how to ask the model."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from llm_detox.errors import GateNotPassed
from llm_detox.evaluation.report_content import Report, read_report
from llm_detox.progress import human_seconds
from llm_detox.runs.artifacts import ReportFolder
from llm_detox.runs.folders import read_manifest
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
    report, page = read_report(run.report), ReportFolder(run.report).page
    console = Console(width=None if sys.stdout.isatty() else 120, color_system=None)
    console.print(_arms_table(report))
    console.print(f"verdict: [bold]{run.verdict}[/bold] (after {human_seconds(run.seconds)})")
    for reason in report.verdict.reasons:
        console.print(f"  - {reason}", markup=False)
    console.print(f"report: {page}", markup=False, soft_wrap=True)
    if run.verdict != "pass":
        raise GateNotPassed("the model was not published and not deployed", place=f"gate: {run.verdict}",
                            remedy=f"read {page}; more data or epochs, or another recipe")
    if run.answers:
        _show_answers(console, run.answers, run.deployment, keep_serving)


def _arms_table(report: Report) -> Table:
    table = Table(title="toxicity and fluency of the arms, 95 % intervals in brackets")
    table.add_column("arm")
    for title in (*_COLUMNS.values(), "perplexity, clean text"):
        table.add_column(title, justify="right")
    for title, arm in report.arms.items():
        intervals = (getattr(arm, name) for name in _COLUMNS)
        cells = [f"{one.value:.3f} [{one.low:.3f}, {one.high:.3f}]" if one else "-" for one in intervals]
        perplexity = arm.perplexity
        table.add_row(title, *(cell.replace("[", "\\[") for cell in cells), f"{perplexity:.2f}" if perplexity else "-")
    return table


def _show_answers(console: Console, answers: Path, deployment: Path | None, keep_serving: bool) -> None:
    result = read_manifest(answers)["result"]
    console.print(f"asked: {result['prompt']}", markup=False)
    console.print(f"answered: {result['text']}", markup=False)
    if keep_serving and deployment:
        served = read_manifest(deployment)["result"]
        console.print("the model is being served; ask it with", markup=False)
        for command in (
            f'llm-detox ask --url {served["rest_url"]} --model {served["model_id"]} "{result["prompt"]}"',
            f'llm-detox ask --grpc {served["grpc_address"]} --model {served["model_id"]} "{result["prompt"]}"',
        ):
            console.print(f"  {command}", markup=False, soft_wrap=True)
    else:
        console.print("`make serve` serves this model again", markup=False)
