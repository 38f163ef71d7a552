"""Prometheus metrics under the names that TGIS dashboards read."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.core import Metric
from prometheus_client.exposition import generate_latest

disable_created_metrics()  # type: ignore[no-untyped-call]

_SECONDS = tuple(round(0.0001 * 1.5**power, 7) for power in range(1, 36))
_TOKENS = tuple(float(1 << power) for power in range(0, 18))


class Metrics:
    """One engine's metrics, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._counters: dict[str, Counter] = {}
        self.requests = self._counter("tgi_request_count", "requests", "kind")
        self.inputs = self._counter("tgi_request_input_count", "inputs")
        self.success = self._counter("tgi_request_success", "finished requests", "stop_reason", "kind")
        self.failure = self._counter("tgi_request_failure", "failed requests", "err")
        self.tokenize = self._counter("tgi_tokenize_request_count", "tokenize requests")
        self._inference = self._counter("tgi_batch_inference_count", "forward passes", "method")
        self._batch_seconds = self._histogram("tgi_batch_inference_duration", _SECONDS, "method")
        self._batch_rows = self._histogram("tgi_batch_inference_batch_size", _TOKENS, "method")
        self._queue_seconds = self._histogram("tgi_request_queue_duration", _SECONDS)
        self.seconds = self._histogram("tgi_request_duration", _SECONDS)
        self.input_tokens = self._histogram("tgi_request_input_length", _TOKENS)
        self.generated_tokens = self._histogram("tgi_request_generated_tokens", _TOKENS)
        self._rows = Gauge("tgi_batch_current_size", "requests in the batch", registry=self.registry)
        self._batch_tokens = Gauge("tgi_batch_input_tokens", "tokens in the batch", registry=self.registry)
        self._queue = Gauge("tgi_queue_size", "requests that wait", registry=self.registry)
        self.registry.register(_WithoutTotal(self._counters))
        self._model = Gauge("llm_detox_model", "the folder whose model is served", ["folder"], registry=self.registry)
        self.reload_failures = Counter("llm_detox_reload_failures", "models that were not taken",
                                       registry=self.registry)

    def stepped(self, method: str, rows: int, seconds: float) -> None:
        """A forward pass ran: `prefill` or `next_token`."""
        self._inference.labels(method).inc()
        self._batch_rows.labels(method).observe(rows)
        self._batch_seconds.labels(method).observe(seconds)

    def batch(self, rows: int, tokens: int, waiting: int) -> None:
        """The state of the batch now."""
        self._rows.set(rows)
        self._batch_tokens.set(tokens)
        self._queue.set(waiting)

    def waited(self, seconds: float) -> None:
        """A request left the queue."""
        self._queue_seconds.observe(seconds)

    def serves(self, folder: str) -> None:
        """New calls meet the model of this folder from now on."""
        self._model.clear()
        self._model.labels(folder).set(1)

    def text(self) -> bytes:
        """The exposition format."""
        exposed: bytes = generate_latest(self.registry)
        return exposed

    def _counter(self, name: str, about: str, *labels: str) -> Counter:
        self._counters[name] = counter = Counter(name, about, labels, registry=self.registry)
        return counter

    def _histogram(self, name: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(name, name.removeprefix("tgi_").replace("_", " "), labels, buckets=buckets,
                         registry=self.registry)


class _WithoutTotal:
    """TGIS exposes each counter a second time without the suffix `_total`."""

    def __init__(self, counters: dict[str, Counter]) -> None:
        self._counters = counters

    def collect(self) -> Iterable[Metric]:
        for name, counter in self._counters.items():
            metric = Metric(name, "the same without the suffix", "unknown")
            for family in counter.collect():
                for sample in family.samples:
                    if sample.name.endswith("_total"):
                        metric.add_sample(name, sample.labels, sample.value)
            yield metric
