"""`llm-detox compare`, also `llm-detox evaluate compare`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llm_detox.cli.common import AsJson, existing, show_outcome

if TYPE_CHECKING:
    from llm_detox.evaluation.compare import Evaluation


def command(
    evaluations: Annotated[list[Path], typer.Argument(help="Folders that `llm-detox evaluate` wrote, the base first.")],
    confidence: Annotated[float, typer.Option(min=0.5, max=0.999, help="Of the intervals.")] = 0.95,
    samples: Annotated[int, typer.Option(min=1000, help="Bootstrap resamples.")] = 5000,
    seed: Annotated[int, typer.Option(help="Of the resampling.")] = 42,
    as_json: AsJson = False,
) -> None:
    """Paired differences between evaluations. They must be of the same prompts by the same scorer."""
    from llm_detox.errors import UsageError
    from llm_detox.evaluation.compare import compare, read_evaluation

    if len(evaluations) < 2:
        raise UsageError("two evaluations or more are needed", place="compare",
                         remedy="llm-detox evaluate compare BASE OTHER")
    read = [read_evaluation(existing(folder, "the evaluation")) for folder in evaluations]
    named = {(one.arm if [other.arm for other in read].count(one.arm) == 1 else str(one.folder)): one for one in read}
    rows = compare(named, samples=samples, confidence=confidence, seed=seed)
    if as_json:
        show_outcome({"arms": {arm: _figures(one) for arm, one in named.items()}, "differences": rows}, None, True)
        return
    _show(named, rows)


def _figures(evaluation: Evaluation) -> dict[str, Any]:
    from llm_detox.evaluation.metrics import METRICS

    return {name: evaluation.report.get(name)
            for name in (*METRICS, "perplexity", "distinct_2", "unscored", "prompts", "continuations")}


def _show(arms: Mapping[str, Evaluation], rows: list[dict[str, Any]]) -> None:
    from llm_detox.evaluation.metrics import METRICS

    wide = max(len("against"), *map(len, arms))
    print(f"{'arm':<{wide}}  {'prompts':>7} {'unscored':>8}  " + "".join(f"{metric:<27}" for metric in METRICS))
    for arm, one in arms.items():
        cells = [f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]" if (found := one.report[metric])
                 else "-" for metric in METRICS]
        print(f"{arm:<{wide}}  {one.report['prompts']:>7} {one.report['unscored']:>8}  "
              + "".join(f"{cell:<27}" for cell in cells))
    print(f"\n{'arm':<{wide}}  {'against':<{wide}}  {'metric':<26} {'stratum':<12} {'difference':>10}  "
          f"{'interval':<18} {'effect d':>8} {'p, adjusted':>11}  prompts")
    for row in rows:
        effect = f"{row['effect']:+.2f}" if row["effect"] is not None else "-"
        interval = f"[{row['low']:+.3f}, {row['high']:+.3f}]"
        print(f"{row['arm']:<{wide}}  {row['against']:<{wide}}  {row['metric']:<26} {row['stratum']:<12} "
              f"{row['value']:>+10.3f}  {interval:<18} {effect:>8} {row['p_adjusted']:>11.2g}  {row['prompts']}")
    print(f"\nEach interval is for its own row; p is adjusted for the {len(rows)} comparisons (Holm).")
