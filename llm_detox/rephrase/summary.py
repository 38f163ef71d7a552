"""Counts and histograms of an audit trail, for the manifest and the report."""

from __future__ import annotations

from collections import Counter
from typing import Any

from llm_detox.data.records import Record

_BINS = 10


class Summary:
    """Adds up records one by one."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter({"records": 0, "kept": 0, "rewritten": 0, "dropped": 0})
        self._methods: Counter[str] = Counter()
        self._refusals: Counter[str] = Counter()
        self._histograms = {name: [0] * _BINS for name in ("toxicity_before", "toxicity_after", "similarity")}
        self._sums: Counter[str] = Counter()

    def add(self, record: Record) -> None:
        """Count one record of the audit trail."""
        self.counts["records"] += 1
        self.counts[record["action"]] += 1
        for attempt in record.get("tried", ()):
            self._refusals.update(attempt["refused"])
        if record["action"] != "rewritten":
            return
        self._methods[record["method"]] += 1
        for name, histogram in self._histograms.items():
            value = record["scores"].get(name)
            if value is not None:
                histogram[min(_BINS - 1, max(0, int(value * _BINS)))] += 1
                self._sums[name] += value
        if "perplexity_after" in record["scores"]:  # a refusal has none
            self._sums["perplexity_ratio"] += (
                record["scores"]["perplexity_after"] / record["scores"]["perplexity_before"])

    def as_result(self) -> dict[str, Any]:
        """Counts, shares and, over the rewritten records, means and histograms of ten bins from 0 to 1."""
        rewritten = self.counts["rewritten"]
        means = {name: round(value / rewritten, 4) for name, value in self._sums.items()} if rewritten else {}
        return {**self.counts, "methods": dict(self._methods), "refusals": dict(self._refusals), "means": means,
                "histograms": self._histograms}
