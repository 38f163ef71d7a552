"""How often an interval holds the truth."""

from __future__ import annotations

from typing import Any

from llm_detox.evaluation.intervals import Bootstrap

OPTIONS = Bootstrap(samples=2000, confidence=0.95, seed=1)


def covered(trials: int, low_high: Any, truth: float) -> float:
    found = [low_high(trial) for trial in range(trials)]
    return sum(low <= truth <= high for low, high in found) / trials
