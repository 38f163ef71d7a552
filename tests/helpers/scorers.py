"""Scorers that fail on purpose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llm_detox.scoring.base import ToxicityScorer


class Faulty(ToxicityScorer):
    """Answers what it is told to, a batch at a time."""

    def __init__(self, answers: Sequence[Any], batch_size: int = 2) -> None:
        super().__init__("faulty", "f", ("toxicity",), batch_size=batch_size)
        self.answers = iter(answers)

    def score_batch(self, texts: Sequence[str]) -> Sequence[Mapping[str, float] | None]:
        answer = next(self.answers)
        if isinstance(answer, Exception):
            raise answer
        return answer  # type: ignore[no-any-return]
