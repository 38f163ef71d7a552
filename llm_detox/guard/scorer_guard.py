"""A toxicity scorer as a guard: what of an answer is scored, and which scores count.

Each sentence is scored alone and with what went before: a long harmless text would cover up a toxic sentence, and
sentences that are harmless alone need not be so together. Within a long sentence the same holds of its parts, so that
every run of words is scored, too. The highest score counts; a mere mention of a group does not
(`llm_detox.detector.mentions`).
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from llm_detox.client.types import Prompt
from llm_detox.detector.mentions import excused_scores
from llm_detox.detector.pieces import runs_of_words
from llm_detox.errors import DetoxError, UsageError
from llm_detox.guard.filter import GuardVerdict
from llm_detox.scoring.base import Scores, ToxicityScorer

_CONTEXT, _LONGEST = 2000, 200_000  # characters that a sentence is scored with; of an answer that is judged at all


class ScorerGuard:
    """Withholds what a toxicity scorer puts at or over a threshold."""

    by_sentence = True

    def __init__(self, scorer: ToxicityScorer, threshold: float = 0.5) -> None:
        if not 0 < threshold <= 1:
            raise UsageError("a threshold is between 0 and 1", place="--guard-threshold", remedy="try 0.5")
        self.name, self.threshold = str(scorer.name), threshold
        self._scorer = scorer
        self._lock = threading.Lock()

    def judge(self, prompt: Prompt, shown: str, sentences: Sequence[str]) -> GuardVerdict:
        texts, whole = [], shown
        for sentence in sentences:
            alone, whole = not whole.strip(), whole + sentence
            if sentence.strip():
                texts += [sentence, *runs_of_words(sentence), *([] if alone else [whole[-_CONTEXT:]])]
            if len(whole) > _LONGEST:
                return GuardVerdict(True, f"could not be scored: it has more than {_LONGEST} characters")
        try:
            with self._lock:
                scores = self._scores(texts)
        except DetoxError as error:
            return GuardVerdict(True, f"could not be scored: {error.message}")
        known = [score for score in scores if score is not None]
        if len(known) < len(scores):
            return GuardVerdict(True, "could not be scored")
        highest = max(known, default=0.0)
        over = highest >= self.threshold
        return GuardVerdict(over, f"toxicity {highest:.2f}, {'at or over' if over else 'under'} {self.threshold:g}",
                            highest)

    def _scores(self, texts: Sequence[str]) -> list[float | None]:
        known = excused_scores(self._named, texts, {"score": self.threshold})
        return [scores["score"] if scores else None for scores in known]

    def _named(self, texts: Sequence[str]) -> list[Scores | None]:
        return [None if score is None else {"score": score} for score in self._scorer.score(texts)]
