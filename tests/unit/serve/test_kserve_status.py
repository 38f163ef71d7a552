"""Reading a cluster's words: what is ready, what cannot heal, and what to do about it."""

from __future__ import annotations

from typing import Any

import pytest

from llm_detox.cluster.objects import InferenceService, Pod
from llm_detox.serve.kserve.status import Reason, is_ready, reasons, urls

OLD, NEW = "1" * 64, "2" * 64


def service(*, ready: bool = True, observed: int = 2, generation: int = 2, **status: Any) -> InferenceService:
    return InferenceService.of({"metadata": {"name": "m", "namespace": "p", "generation": generation},
            "status": {"observedGeneration": observed, "conditions": [{"type": "Ready", "status": str(ready)}],
                       **status}})


def pod(version: str = NEW, *, ready: bool = True, leaving: bool = False, **status: Any) -> Pod:
    metadata = {"name": "m-predictor-1", "annotations": {"llm-detox/version": version}}
    return Pod.of({"metadata": metadata | ({"deletionTimestamp": "now"} if leaving else {}),
                   "status": {"conditions": [{"type": "Ready", "status": str(ready)}], **status}})


def container(waiting: str = "", *, message: str = "", restarts: int = 0, last: dict[str, Any] | None = None) -> Any:
    return {"name": "kserve-container", "restartCount": restarts,
            "state": {"waiting": {"reason": waiting, "message": message}} if waiting else {},
            "lastState": {"terminated": last} if last else {}}


def only(found: list[Reason]) -> Reason:
    assert len(found) == 1, found
    return found[0]


def test_ready_is_the_condition_of_this_generation_and_pods_of_this_version() -> None:
    assert is_ready(service(), [pod()], NEW)


@pytest.mark.parametrize(("state", "pods"), [
    (service(ready=False), [pod()]),
    (service(observed=1), [pod()]),
    (service(modelStatus={"transitionStatus": "InProgress"}), [pod()]),
    (service(), []),
    (service(), [pod(OLD)]),
    (service(), [pod(), pod(OLD)]),
    (service(), [pod(ready=False)]),
    (service(), [pod(leaving=True)]),
    (InferenceService.of({"metadata": {"name": "m", "generation": 1}}), [pod()]),
])
def test_all_else_is_not_ready(state: InferenceService, pods: list[Pod]) -> None:
    assert not is_ready(state, pods, NEW)


def test_an_old_pod_that_is_leaving_does_not_count() -> None:
    assert is_ready(service(), [pod(), pod(OLD, leaving=True)], NEW)


@pytest.mark.parametrize(("one", "patience", "told", "remedy"), [
    (container("ImagePullBackOff", message="manifest unknown"), "pending", "manifest unknown", "pull secret"),
    (container("InvalidImageName", message="bad"), "settle", "InvalidImageName", "manifests/settings"),
    (container("CreateContainerConfigError", message="no secret s3"), "settle", "no secret s3", "make"),
    (container("CrashLoopBackOff", restarts=3, last={"exitCode": 137, "reason": "OOMKilled"}), "settle", "OOMKilled",
     "deploy.kserve.memory"),
    (container("CrashLoopBackOff", restarts=5, last={"exitCode": 1, "message": "no such file"}), "settle",
     "ended 5 times (exit code 1): no such file", "--previous"),
])
@pytest.mark.parametrize("place", ["containerStatuses", "initContainerStatuses"])
def test_containers_say_why_they_wait(one: Any, patience: str, told: str, remedy: str, place: str) -> None:
    found = only(reasons(service(ready=False), [pod(ready=False, **{place: [one]})], [], NEW))
    assert found.patience == patience
    assert told in found.text
    assert remedy in found.remedy


def test_one_restart_is_no_reason_to_give_up() -> None:
    restarted = container("CrashLoopBackOff", restarts=1, last={"exitCode": 1})
    found = reasons(service(ready=False), [pod(ready=False, containerStatuses=[restarted])], [], NEW)
    assert only(found).patience == "none"


def test_trouble_of_the_old_pods_is_not_the_new_versions() -> None:
    broken = container("CrashLoopBackOff", restarts=9, last={"exitCode": 1})
    found = reasons(service(ready=False), [pod(OLD, ready=False, containerStatuses=[broken])], [], NEW)
    assert only(found).key == "no pod"


def test_a_failed_load_tells_reason_message_and_exit_code() -> None:
    state = service(ready=False, modelStatus={"transitionStatus": "BlockedByFailedLoad", "lastFailureInfo": {
        "reason": "ModelLoadFailed", "message": "out of memory", "exitCode": 1}})
    found = only(reasons(state, [pod(ready=False)], [], NEW))
    assert found.text == "BlockedByFailedLoad: ModelLoadFailed: out of memory (exit code 1)"
    assert found.patience == "settle"


def test_before_the_controller_has_looked_an_old_failure_means_nothing() -> None:
    state = service(observed=1, modelStatus={"transitionStatus": "BlockedByFailedLoad"})
    assert only(reasons(state, [], [], NEW)).key == "unseen"


@pytest.mark.parametrize(("status", "told", "given"), [
    ({}, {"rest": "http://m-predictor.p.svc.cluster.local:8080", "grpc": "grpc://m-predictor.p.svc.cluster.local:8085"},
     {}),
    ({"address": {"url": "http://m.p.svc/"}}, {"rest": "http://m.p.svc", "grpc": "grpc://m.p.svc:8085"}, {}),
    ({"address": {"url": "https://m.p.svc:443"}}, {"rest": "https://m.p.svc:443", "grpc": "grpcs://m.p.svc:8085"}, {}),
    ({"address": {"url": "http://a"}, "components": {"predictor": {"grpcUrl": "b:9"}}},
     {"rest": "http://a", "grpc": "grpc://b:9"}, {}),
    ({"address": {"url": "http://a"}}, {"rest": "https://route", "grpc": "grpcs://route:443"},
     {"rest_url": "https://route", "grpc_url": "grpcs://route:443"}),
])
def test_where_the_model_answers(status: Any, told: dict[str, str], given: dict[str, str]) -> None:
    assert urls(service(**status), **given) == told
