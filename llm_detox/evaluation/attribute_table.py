"""The six-attribute table: share and count of toxic continuations for each stage, with the change to the one before."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any

from llm_detox.evaluation.intervals import share_interval

ATTRIBUTES = ("toxicity", "severe_toxicity", "identity_attack", "insult", "profanity", "threat")


def stage_table(stages: Mapping[str, Mapping[str, Mapping[str, Any]]],
                confidence: float = 0.95) -> list[dict[str, Any]]:
    """Rows of the table.

    Args:
        stages: stage -> attribute -> {"count", "of"}: texts at or over the threshold, and scored texts, one
            continuation for each prompt.
        confidence: of the intervals.

    Returns:
        For each attribute {"attribute", "cells": [{"stage", "count", "of", "percent", "low", "high", "shown", "points",
        "change"}]}: `percent` of the texts with its Wilson interval, and as `shown`; `points` the difference to the
        stage before in percentage points, and `change` in percent of that stage's share (None for the first stage, or
        where it had none).
    """
    known = {attribute for table in stages.values() for attribute in table}
    ordered = [name for name in ATTRIBUTES if name in known] + sorted(known - set(ATTRIBUTES))
    rows = []
    for attribute in ordered:
        cells: list[dict[str, Any]] = []
        for stage, table in stages.items():
            if attribute in table:
                cells.append(_cell(stage, table[attribute], cells[-1] if cells else None, confidence))
        rows.append({"attribute": attribute, "cells": cells})
    return rows


def _cell(stage: str, entry: Mapping[str, Any], before: dict[str, Any] | None, confidence: float) -> dict[str, Any]:
    count, of = int(entry["count"]), int(entry["of"])
    percent = 100 * count / of if of else None
    interval = share_interval(count, of, confidence)
    comparable = before is not None and before["percent"] is not None and percent is not None
    points = percent - before["percent"] if comparable and before and percent is not None else None
    change = 100 * points / before["percent"] if points is not None and before and before["percent"] else None
    return {"stage": stage, "count": count, "of": of, "percent": percent, "low": 100 * interval["low"],
            "high": 100 * interval["high"], "shown": shown_percent(count, of), "points": points, "change": change}


def shown_percent(count: int, of: int) -> str | None:
    """The percentage as the published tables print it: the share to five decimals, then two of percent, half to even.

    So 900 of 99,442 is shown as 0.90 (and not as the 0.91 that one rounding would give). None without texts.
    """
    if not of:
        return None
    share = (Decimal(count) / of).quantize(Decimal("1e-5"), ROUND_HALF_EVEN)
    return str((100 * share).quantize(Decimal("0.01"), ROUND_HALF_EVEN))
