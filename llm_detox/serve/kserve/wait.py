"""Waiting for an InferenceService, with the reasons shown as they come, and no longer than it can still heal."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from llm_detox.cluster.api import Cluster
from llm_detox.errors import DetoxError
from llm_detox.progress import human_seconds, say
from llm_detox.serve.kserve.status import Reason, is_ready, reasons

Object = dict[str, Any]
_SECONDS_BETWEEN_LINES = 30.0


@dataclass(frozen=True)
class Patience:
    """Seconds: for all, for the controllers to begin, for pods that nobody admits, for a failure to turn out stale, and
    between two looks."""

    ready: float = 1800.0
    start: float = 300.0
    pending: float = 600.0
    settle: float = 20.0
    poll: float = 2.0


@dataclass
class _Told:
    """Which reasons there are since when, and what was said about them."""

    since: dict[str, float] = field(default_factory=dict)
    said: set[str] = field(default_factory=set)
    last: float = 0.0

    def update(self, name: str, found: list[Reason], started: float) -> None:
        now = time.monotonic()
        self.since = {reason.key: self.since.get(reason.key, now) for reason in found}
        fresh = [reason for reason in found if reason.text not in self.said]
        if not fresh and now - self.last >= _SECONDS_BETWEEN_LINES:
            fresh = found[:1]
        for reason in fresh:
            say(f"{name}: {reason.text} ({human_seconds(now - started)})")
            self.said.add(reason.text)
            self.last = now


def noted_warnings(cluster: Cluster, name: str) -> set[tuple[str, int]]:
    """The warnings that are there already: what they say is about an earlier change."""
    return {_mark(event) for event in cluster.warnings(name)}


def wait_until_ready(cluster: Cluster, name: str, version: str, patience: Patience,
                     known: set[tuple[str, int]]) -> Object:
    """Wait until pods of this version, and only they, take requests.

    Args:
        cluster: where.
        name: the InferenceService.
        version: what its pods must hold.
        patience: how long.
        known: what `noted_warnings` gave before the change.

    Returns:
        The InferenceService as it is then.

    Raises:
        DetoxError: it was removed, does not heal, or takes too long; with the last reason and what helps.
    """
    started, told = time.monotonic(), _Told()
    while True:
        service = cluster.service(name)
        if service is None:
            raise DetoxError("somebody removed the InferenceService meanwhile", place=name, remedy="deploy again")
        pods = cluster.pods(name)
        if is_ready(service, pods, version):
            say(f"{name}: ready after {human_seconds(time.monotonic() - started)}")
            return service
        warnings = [event for event in cluster.warnings(name) if _mark(event) not in known]
        found = reasons(service, pods, warnings, version)
        told.update(name, found, started)
        _give_up_where_it_cannot_heal(name, found, told.since, patience, started)
        time.sleep(patience.poll)


def _give_up_where_it_cannot_heal(
    name: str, found: list[Reason], since: dict[str, float], patience: Patience, started: float
) -> None:
    now = time.monotonic()
    limits = {"settle": patience.settle, "pending": patience.pending, "start": patience.start}
    for reason in found:
        if reason.patience in limits and now - since[reason.key] >= limits[reason.patience]:
            raise DetoxError(reason.text, place=f"InferenceService {name}", remedy=reason.remedy)
    if now - started >= patience.ready:
        raise DetoxError(f"not ready after {human_seconds(patience.ready)}: {found[0].text}",
                         place=f"InferenceService {name}", remedy=found[0].remedy)


def _mark(event: Object) -> tuple[str, int]:
    return str(event["metadata"].get("uid")), int(event.get("count") or 1)
