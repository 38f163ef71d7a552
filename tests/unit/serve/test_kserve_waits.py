"""Waits end where the recorded traces of the real KServe say that they should."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from llm_detox.cluster.objects import Deployment, InferenceService
from llm_detox.errors import DetoxError
from llm_detox.serve.kserve import status
from llm_detox.serve.kserve.render import SPEC
from llm_detox.serve.kserve.status import Patience, wait_until_ready
from tests.standins.recordings import needs_recordings
from tests.standins.traces import NAME, PHASES, Clock, Phase, ReplayedCluster

pytestmark = needs_recordings
DIGEST = "wanted"
POLL = 0.1
# What a user waits at most until a failure that does not heal is told, in seconds.
PATIENCE = Patience(ready=3600, start=300, pending=600, failing=300, settle=20, poll=POLL)


@dataclass
class Waited:
    """How a wait ended: at which second of the trace, and with which error."""

    at: float
    error: DetoxError | None
    service: InferenceService | None


def wait(phase: Phase, monkeypatch: pytest.MonkeyPatch) -> Waited:
    cluster = ReplayedCluster(phase, SPEC, DIGEST, read_deployment=Deployment.of)
    monkeypatch.setattr(status, "time", cluster.clock)
    replayed: Any = cluster
    try:
        service = wait_until_ready(replayed, NAME, DIGEST, PATIENCE, set())
    except DetoxError as error:
        return Waited(cluster.clock.now, error, None)
    return Waited(cluster.clock.now, None, service)


@pytest.mark.parametrize("phase", [one for one in PHASES if one.ready is not None], ids=str)
def test_a_wait_ends_when_the_pods_of_the_wanted_spec_serve_and_not_before(
    phase: Phase, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited = wait(phase, monkeypatch)
    assert waited.error is None
    assert phase.ready is not None
    assert phase.ready - 1e-6 <= waited.at <= phase.ready + 2 * POLL


@pytest.mark.parametrize("phase", [one for one in PHASES if one.ready is None], ids=str)
def test_a_wait_for_what_never_gets_ready_ends_with_the_controllers_own_words(
    phase: Phase, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited = wait(phase, monkeypatch)
    assert waited.error is not None
    for words in phase.failure:
        assert words in waited.error.message
    assert phase.fails_from is not None
    assert phase.fails_from <= waited.at <= phase.fails_from + PATIENCE.failing + 1


class Restarting:
    """A cluster whose model fails to load, starts again and fails again, a second each."""

    namespace = "p"

    def __init__(self) -> None:
        self.clock = Clock()

    def service(self, name: str) -> InferenceService:
        fails = int(self.clock.now) % 2 == 0
        return InferenceService.of({"metadata": {"name": name}, "status": {"modelStatus": {
            "transitionStatus": "BlockedByFailedLoad" if fails else "InProgress",
            "lastFailureInfo": {"reason": "ModelLoadFailed", "message": "out of memory"}}}})

    def deployment(self, name: str) -> None:
        return None

    def pods(self, name: str) -> list[Any]:
        return []

    def warnings(self, name: str) -> list[Any]:
        return []


def test_the_time_of_a_model_that_fails_at_each_start_counts_from_the_first_failure(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster: Any = Restarting()
    monkeypatch.setattr(status, "time", cluster.clock)
    with pytest.raises(DetoxError, match="BlockedByFailedLoad: ModelLoadFailed: out of memory"):
        wait_until_ready(cluster, NAME, DIGEST, Patience(ready=900, start=900, failing=60, poll=0.5), set())
    assert 60 <= cluster.clock.now <= 63
