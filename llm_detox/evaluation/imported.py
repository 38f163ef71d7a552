"""Results of lm-evaluation-harness beside our own: capabilities and other tasks, as its runs and LMEvalJobs write them.

They are shown as they are, with where they come from, and decide nothing: the gate knows nothing of how they were
measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from llm_detox.errors import DetoxError
from llm_detox.runs.artifacts import read_json
from llm_detox.runs.folders import sha256_of

HARNESS = "lm-evaluation-harness"
_STDERR = "_stderr"


@dataclass(frozen=True, kw_only=True)
class Origin:
    """One file of results.

    Attributes:
        arm: whose model was measured, as whoever imports it says.
        model: as the harness names it; with what arguments, is in its file.
        tool, version: what measured.
        file, sha256: the file's name, and the first digits of its digest.
    """

    arm: str
    model: str
    tool: str
    version: str
    file: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class ImportedCell:
    """One measure of an arm; `stderr` is None where the harness gives none."""

    arm: str
    value: float
    stderr: float | None


@dataclass(frozen=True, kw_only=True)
class ImportedRow:
    """A task's metric in all arms that have it.

    Attributes:
        task: with the filter of the answers, where it is not the usual one.
        higher_is_better: None where the harness does not say.
    """

    task: str
    metric: str
    higher_is_better: bool | None
    cells: list[ImportedCell]


@dataclass(frozen=True, kw_only=True)
class ImportedResults:
    """What was measured elsewhere, and by what."""

    origins: list[Origin]
    rows: list[ImportedRow]


@dataclass(frozen=True, kw_only=True)
class _HarnessFile:
    """What is read of a file of results: task -> "metric,filter" -> value, and what belongs to it."""

    results: dict[str, dict[str, object]]
    higher_is_better: dict[str, dict[str, bool | None]] = field(default_factory=dict)
    model_name: str | None = None
    lm_eval_version: str | None = None


def read_harness_results(files: Sequence[tuple[str, Path]]) -> ImportedResults | None:
    """Read `results_*.json` of some arms, or what an LMEvalJob has as `status.results`.

    Args:
        files: arm and file; an arm may have several.

    Returns:
        None where there is no file.

    Raises:
        DetoxError: a file is none of the harness.
    """
    origins: list[Origin] = []
    rows: dict[tuple[str, str], ImportedRow] = {}
    for arm, path in files:
        try:
            content = read_json(path, _HarnessFile)
        except (OSError, ValueError):
            raise DetoxError(f"no results of {HARNESS}", place=str(path),
                             remedy="pass the results_*.json that `lm_eval --output_path` wrote, or an LMEvalJob's "
                                    "`status.results`") from None
        origins.append(Origin(arm=arm, model=content.model_name or "unnamed", tool=HARNESS,
                              version=content.lm_eval_version or "unknown", file=path.name,
                              sha256=sha256_of(path)[:16]))
        for task, metric, cell in _cells(arm, content):
            better = content.higher_is_better.get(task.partition(" ")[0], {}).get(metric)
            row = rows.setdefault((task, metric), ImportedRow(task=task, metric=metric, higher_is_better=better,
                                                              cells=[]))
            row.cells.append(cell)
    return ImportedResults(origins=origins, rows=list(rows.values())) if origins else None


def _cells(arm: str, content: _HarnessFile) -> Iterator[tuple[str, str, ImportedCell]]:
    """Task, metric and value of each measure; names and counts have no filter behind a comma, and are none."""
    for task, measures in content.results.items():
        for name, value in measures.items():
            metric, comma, chosen = name.partition(",")
            if comma and not metric.endswith(_STDERR) and (known := _number(value)) is not None:
                stderr = _number(measures.get(f"{metric}{_STDERR},{chosen}"))
                yield task if chosen == "none" else f"{task} ({chosen})", metric, ImportedCell(
                    arm=arm, value=known, stderr=stderr)


def _number(value: object) -> float | None:
    """The number; None for what is none, also for NaN."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None
