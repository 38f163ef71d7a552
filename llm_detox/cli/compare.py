"""`llm-detox compare`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from llm_detox.cli.common import AsJson, existing, show_outcome


def command(
    evaluations: Annotated[list[Path], typer.Argument(help="Folders that `llm-detox evaluate` wrote, the base first.")],
    confidence: Annotated[float, typer.Option(min=0.5, max=0.999, help="Of the intervals.")] = 0.95,
    samples: Annotated[int, typer.Option(min=1000, help="Bootstrap resamples.")] = 5000,
    seed: Annotated[int, typer.Option(help="Of the resampling.")] = 42,
    as_json: AsJson = False,
) -> None:
    """Paired differences between evaluations of the same prompts by the same scorer; others are refused."""
    from llm_detox.errors import UsageError
    from llm_detox.evaluation.compare import compare, read_evaluation

    if len(evaluations) < 2:
        raise UsageError("two evaluations or more are needed", place="compare", remedy="llm-detox compare BASE OTHER")
    read = [read_evaluation(existing(folder, "the evaluation")) for folder in evaluations]
    named = {(one.arm if [other.arm for other in read].count(one.arm) == 1 else str(one.folder)): one for one in read}
    rows = compare(named, samples=samples, confidence=confidence, seed=seed)
    if as_json:
        show_outcome({"differences": rows}, None, True)
        return
    print(f"{'arm':<16} {'against':<16} {'metric':<26} {'stratum':<12} {'difference':>10}  interval", file=sys.stdout)
    for row in rows:
        print(f"{row['arm']:<16} {row['against']:<16} {row['metric']:<26} {row['stratum']:<12} "
              f"{row['value']:>+10.3f}  [{row['low']:+.3f}, {row['high']:+.3f}] over {row['prompts']} prompts")
