"""The replays: the table of where each change ends agrees with the traces, and the status stand-in follows them."""

from __future__ import annotations

from typing import Any

import pytest

from tests.standins.kserve.platform import OPENDATAHUB
from tests.standins.kserve.runtimes import SpecRefused
from tests.standins.kserve.status import Loading, refusal_status, status_of
from tests.standins.recordings import differences, needs_recordings
from tests.standins.traces import (
    LAGS,
    MODEL_STATUS_LAGS,
    NAME,
    NAMES,
    PHASES,
    WITHOUT_RUNTIME_NAME,
    Phase,
    ReplayedCluster,
    State,
    states_of,
)

Object = dict[str, Any]
pytestmark = needs_recordings
ANNOTATION, DIGEST = "llm-detox/spec", "wanted"




def loading_of_state(state: State) -> Loading:
    """The pods were not recorded: what they said about loading is taken from what KServe said of them."""
    model = state.service["status"]["modelStatus"]
    target = model.get("states", {}).get("targetModelState")
    return Loading(model.get("copies", {}).get("totalCopies", 0), target if target in ("Loading", "FailedToLoad")
                   else "Pending", model.get("lastFailureInfo") if target == "FailedToLoad" else None)


def predicted_status(trace: str, states: list[State], index: int) -> Object:
    state, place = states[index], (trace, states[index].seconds)
    previous = states[index - 1] if index else None
    # The first state comes after something that was not recorded: what stays from then on is taken from itself.
    known = (previous or state).service["status"]
    recorded = state.service["status"]
    if recorded["modelStatus"]["transitionStatus"] == "InvalidSpec":
        failure = recorded["modelStatus"]["lastFailureInfo"]
        return refusal_status(SpecRefused(failure["reason"], failure["message"]), known if previous else None)
    deployment = state.deployment
    if lag := LAGS.get(place):
        deployment = previous.deployment if lag == "before" and previous else {"status": {}}
    return status_of(state.service, OPENDATAHUB, deployment, loading_of_state(state), known)


@pytest.mark.parametrize("trace", NAMES)
def test_the_status_follows_the_deployment_in_each_state_of_a_trace(trace: str) -> None:
    states = states_of(trace)
    wrong = []
    for index, state in enumerate(states):
        recorded, place = state.service["status"], (trace, state.seconds)
        status = predicted_status(trace, states, index)
        if place in WITHOUT_RUNTIME_NAME:
            assert "servingRuntimeName" not in recorded
            del status["servingRuntimeName"]
        if place in MODEL_STATUS_LAGS:
            assert status.pop("modelStatus") != recorded.pop("modelStatus")
        wrong += [f"{state.seconds} s {line}" for line in differences(recorded, status)]
    assert wrong == []


def is_rolled_out(cluster: ReplayedCluster) -> bool:
    """The Deployment has the wanted template, its controller has seen it, and no other pod is left."""
    deployment = cluster.deployment(NAME)
    if deployment is None or cluster.state.service["status"]["modelStatus"]["transitionStatus"] == "InvalidSpec":
        return False
    counts, wanted = deployment["status"], deployment["spec"]["replicas"]
    return (deployment["spec"]["template"]["metadata"]["annotations"][ANNOTATION] == DIGEST
            and counts["observedGeneration"] == deployment["metadata"]["generation"]
            and all(counts.get(key, 0) == wanted for key in ("updatedReplicas", "replicas", "availableReplicas")))


def says_ready(cluster: ReplayedCluster) -> bool:
    service = cluster.service(NAME)
    return service is not None and service.ready and service.transition == "UpToDate"


def seconds_where(phase: Phase, holds: Any) -> list[float]:
    """The seconds of the phase's states in which something holds."""
    cluster = ReplayedCluster(phase, ANNOTATION, DIGEST)
    times = [one.seconds for one in states_of(phase.trace)
             if phase.begins <= one.seconds and (phase.ends is None or one.seconds < phase.ends)]
    result = []
    for cluster.clock.now in times:
        if holds(cluster):
            result.append(cluster.clock.now)
    return result


@pytest.mark.parametrize("phase", PHASES, ids=str)
def test_the_table_says_when_the_wanted_pods_serve(phase: Phase) -> None:
    ready = seconds_where(phase, lambda cluster: says_ready(cluster) and is_rolled_out(cluster))
    assert ready[:1] == ([] if phase.ready is None else [phase.ready])
    mistaken = seconds_where(phase, lambda cluster: says_ready(cluster) and not is_rolled_out(cluster))
    assert tuple(mistaken) == phase.mistaken


@pytest.mark.parametrize("phase", PHASES, ids=str)
def test_the_table_says_which_failures_stay_and_which_heal(phase: Phase) -> None:
    def fails(cluster: ReplayedCluster) -> bool:
        status = cluster.state.service["status"]
        return (status["modelStatus"]["transitionStatus"] in ("BlockedByFailedLoad", "InvalidSpec")
                or any(one.get("reason") == "Stopped" for one in status["conditions"]))

    failing = seconds_where(phase, fails)
    if phase.ready is not None:
        assert (tuple(failing), phase.failure, phase.fails_from) == (phase.heals, (), None)
        return
    assert failing[0] == phase.fails_from
    cluster = ReplayedCluster(phase, ANNOTATION, DIGEST)
    cluster.clock.sleep(10_000)  # the last state stays
    assert fails(cluster)
    assert all(words in str(cluster.state.service["status"]) for words in phase.failure)


@pytest.mark.parametrize("phase", PHASES, ids=str)
def test_the_pods_of_a_replay_are_those_that_the_deployment_counts(phase: Phase) -> None:
    def counted(cluster: ReplayedCluster) -> bool:
        counts = (cluster.state.deployment or {}).get("status", {})
        pods = cluster.pods(NAME)
        return ((len(pods), sum(pod.ready for pod in pods))
                == (counts.get("replicas", 0), counts.get("readyReplicas", 0)))

    assert len(seconds_where(phase, counted)) == len(seconds_where(phase, lambda cluster: True))
    if phase.ready is not None:
        cluster = ReplayedCluster(phase, ANNOTATION, DIGEST)
        cluster.clock.now = phase.ready
        assert {pod.annotations[ANNOTATION] for pod in cluster.pods(NAME)} == {DIGEST}


def test_each_trace_has_its_place_in_the_table() -> None:
    assert {phase.trace for phase in PHASES} == set(NAMES)
