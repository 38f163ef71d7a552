"""A guard that counts what it says, for Prometheus, and keeps some of the answers."""

from __future__ import annotations

import time
from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics
from prometheus_client.exposition import generate_latest

from llm_detox.client.types import Prompt
from llm_detox.detector.samples import LiveSamples
from llm_detox.guard.filter import Guard, GuardVerdict

disable_created_metrics()  # type: ignore[no-untyped-call]

_PREFIX = "llm_detox_guard"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_SCORES = tuple(number / 20 for number in range(1, 21))


class WatchedGuard:
    """Judges as the guard does, whole answers each.

    Labels are the scorer's name and outcomes, never what a client sent.
    """

    def __init__(self, guard: Guard, samples: LiveSamples | None = None) -> None:
        self.name, self.by_sentence = guard.name, guard.by_sentence
        self._guard, self._samples = guard, samples
        self._registry = CollectorRegistry()
        self.requests = Counter(f"{_PREFIX}_requests", "answered requests, by status", ["code"],
                                registry=self._registry)
        self._answers = Counter(f"{_PREFIX}_answers", "judged answers: passed, withheld, or withheld because unjudged",
                                ["scorer", "outcome"], registry=self._registry)
        self._toxicity = Histogram(f"{_PREFIX}_toxicity", "score of an answer", ["scorer"], buckets=_SCORES,
                                   registry=self._registry)
        self._seconds = Histogram(f"{_PREFIX}_seconds", "what judging an answer takes", ["scorer"], buckets=_SECONDS,
                                  registry=self._registry)

    def judge(self, prompt: Prompt, shown: str, sentences: Sequence[str]) -> GuardVerdict:
        """The guard's verdict, counted."""
        started = time.perf_counter()
        verdict = self._guard.judge(prompt, shown, sentences)
        self._seconds.labels(self.name).observe(time.perf_counter() - started)
        outcome = "passed" if not verdict.withheld else "unjudged" if verdict.score is None else "withheld"
        self._answers.labels(self.name, outcome).inc()
        if verdict.score is not None:
            self._toxicity.labels(self.name).observe(verdict.score)
        if self._samples:
            self._samples.keep(shown + "".join(sentences), {
                "toxicity": verdict.score, "withheld": verdict.withheld, "scorer": self.name})
        return verdict

    def exposition(self) -> bytes:
        """The text for /metrics."""
        exposed: bytes = generate_latest(self._registry)
        return exposed
