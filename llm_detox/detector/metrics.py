"""Prometheus metrics of the detectors of one server."""

from __future__ import annotations

from collections import Counter as Counts
from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.exposition import generate_latest

from llm_detox.detector.base import Detection

disable_created_metrics()  # type: ignore[no-untyped-call]

EXPOSITION = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_PREFIX = "llm_detox_detector"


class Metrics:
    """In a registry of their own. Labels are names of detectors and detections, never what a client sent."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(f"{_PREFIX}_requests", "answered requests, by status", ["code"],
                                registry=self._registry)
        self.waiting = Gauge(f"{_PREFIX}_waiting", "requests that wait or are worked on", ["detector"],
                             registry=self._registry)
        self._contents = Counter(f"{_PREFIX}_contents", "contents", ["detector"], registry=self._registry)
        self._toxic = Counter(f"{_PREFIX}_flagged_contents", "contents with a detection", ["detector"],
                              registry=self._registry)
        self._detections = Counter(f"{_PREFIX}_detections", "detections", ["detector", "detection"],
                                   registry=self._registry)
        self._seconds = Histogram(f"{_PREFIX}_seconds", "from the whole request to its answer", ["detector"],
                                  buckets=_SECONDS, registry=self._registry)

    def detected(self, detector: str, found: Sequence[Sequence[Detection]], seconds: float) -> None:
        """A request was answered."""
        self._contents.labels(detector).inc(len(found))
        self._toxic.labels(detector).inc(sum(map(bool, found)))
        self._seconds.labels(detector).observe(seconds)
        for name, count in Counts(one.detection for detections in found for one in detections).items():
            self._detections.labels(detector, name).inc(count)

    def exposition(self) -> bytes:
        """The text for /metrics."""
        return generate_latest(self._registry)
