"""Reading a cluster's words: what is ready, what cannot heal, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from llm_detox.cluster.objects import Deployment, InferenceService, Pod
from llm_detox.recipe.deploy import KserveSection
from llm_detox.serve.kserve.probe import addresses
from llm_detox.serve.kserve.status import Reason, View

OLD, NEW = "1" * 16, "2" * 16


def service(*, ready: bool = True, annotations: dict[str, str] | None = None, **status: Any) -> InferenceService:
    return InferenceService.of({
        "metadata": {"name": "m", "namespace": "p", "annotations": annotations or {}},
        "status": {"conditions": [{"type": "Ready", "status": str(ready)}], **status}})


def deployment(digest: str = NEW, *, generation: int = 2, observed: int = 2, wanted: int = 1, updated: int = 1,
               replicas: int = 1, available: int = 1) -> Deployment:
    return Deployment("m-predictor", generation, observed, wanted, updated, replicas, available,
                      {"llm-detox/spec": digest})


def pod(digest: str = NEW, *, ready: bool = True, leaving: bool = False, **status: Any) -> Pod:
    metadata = {"name": "m-predictor-1", "annotations": {"llm-detox/spec": digest}}
    return Pod.of({"metadata": metadata | ({"deletionTimestamp": "now"} if leaving else {}),
                   "status": {"conditions": [{"type": "Ready", "status": str(ready)}], **status}})


def view(state: InferenceService | None = None, pods: Sequence[Pod] | None = None,
         behind: Deployment | None = None, *, digest: str | None = NEW) -> View:
    return View(state or service(), behind or deployment(), [pod()] if pods is None else pods, digest)


def container(waiting: str = "", *, message: str = "", restarts: int = 0, last: dict[str, Any] | None = None) -> Any:
    return {"name": "kserve-container", "restartCount": restarts,
            "state": {"waiting": {"reason": waiting, "message": message}} if waiting else {},
            "lastState": {"terminated": last} if last else {}}


def only(found: list[Reason]) -> Reason:
    assert len(found) == 1, found
    return found[0]


def test_ready_is_the_condition_a_finished_roll_out_and_pods_of_the_wanted_spec() -> None:
    assert view().is_ready


@pytest.mark.parametrize("state", [
    view(service(ready=False)),
    view(service(modelStatus={"transitionStatus": "InProgress"})),
    view(service(modelStatus={"transitionStatus": "InvalidSpec"})),
    view(behind=deployment(OLD)),
    view(behind=deployment(generation=3)),
    view(behind=deployment(wanted=2)),
    view(behind=deployment(wanted=2, updated=1, replicas=2, available=2)),
    view(behind=deployment(replicas=2)),
    view(behind=deployment(available=0)),
    view(behind=deployment(wanted=0, updated=0, replicas=0, available=0)),
    view(pods=[]),
    view(pods=[pod(OLD)]),
    view(pods=[pod(), pod(OLD)]),
    view(pods=[pod(ready=False)]),
    view(pods=[pod(leaving=True)]),
    View(service(), None, [pod()], NEW),
])
def test_all_else_is_not_ready(state: View) -> None:
    assert not state.is_ready


def test_an_old_pod_that_is_leaving_does_not_count() -> None:
    assert view(pods=[pod(), pod(OLD, leaving=True)]).is_ready


def test_what_an_earlier_release_deployed_has_no_digest_and_is_ready_by_its_roll_out() -> None:
    assert view(pods=[pod(OLD)], behind=deployment(OLD), digest=None).is_ready


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
    found = only(view(service(ready=False), [pod(ready=False, **{place: [one]})]).reasons())
    assert found.patience == patience
    assert told in found.text
    assert remedy in found.remedy


def test_one_restart_is_no_reason_to_give_up() -> None:
    restarted = container("CrashLoopBackOff", restarts=1, last={"exitCode": 1})
    found = view(service(ready=False), [pod(ready=False, containerStatuses=[restarted])]).reasons()
    assert only(found).patience == "none"


def test_trouble_of_the_old_pods_is_not_the_new_versions() -> None:
    broken = container("CrashLoopBackOff", restarts=9, last={"exitCode": 1})
    found = view(service(ready=False), [pod(OLD, ready=False, containerStatuses=[broken])]).reasons()
    assert only(found).key == "no pod"


def test_a_failed_load_tells_reason_message_and_exit_code() -> None:
    state = service(ready=False, modelStatus={"transitionStatus": "BlockedByFailedLoad", "lastFailureInfo": {
        "reason": "ModelLoadFailed", "message": "out of memory", "exitCode": 1}})
    found = only(view(state, [pod(ready=False)]).reasons())
    assert found.text == "BlockedByFailedLoad: ModelLoadFailed: out of memory (exit code 1)"
    assert found.patience == "failing", "the next start may do better"


@pytest.mark.parametrize("behind", [None, deployment(OLD)])
def test_until_the_deployment_carries_the_wanted_spec_the_controller_has_not_acted(behind: Deployment | None) -> None:
    assert only(View(service(), behind, [pod(OLD)], NEW).reasons()).key == "unseen"


def test_pods_that_serve_without_a_way_to_them_wait_for_the_route() -> None:
    conditions = [{"type": kind, "status": status} for kind, status in (
        ("PredictorReady", "True"), ("IngressReady", "Unknown"), ("Ready", "Unknown"))]
    reason = only(view(service(conditions=conditions)).reasons())
    assert (reason.patience, reason.text) == ("pending", "its pods serve; KServe waits for its Route or Ingress")
    assert only(view(service(conditions=conditions), behind=deployment(available=0)).reasons()).key == "coming up"


def test_a_refused_spec_is_told_although_the_old_pods_are_ready() -> None:
    state = service(modelStatus={"transitionStatus": "InvalidSpec", "lastFailureInfo": {
        "reason": "NoSupportingRuntime", "message": "Specified runtime does not support specified framework/version"}})
    found = only(view(state, [pod(OLD)], deployment(OLD)).reasons())
    assert "NoSupportingRuntime" in found.text
    assert "deploy.kserve.serving" in found.remedy


def test_a_model_that_somebody_stops_is_no_model_that_comes_up() -> None:
    state = service(ready=False, annotations={"serving.kserve.io/stop": "true"})
    assert only(View(state, None, [], NEW).reasons()).patience == "settle"


INSIDE = "m-predictor.p.svc.cluster.local"
PROTECTED = {"security.opendatahub.io/enable-auth": "true"}


@pytest.mark.parametrize(("state", "settings", "expected"), [
    (service(), {}, {"rest": f"http://{INSIDE}", "grpc": f"grpc://{INSIDE}:8085"}),
    (service(address={"url": "http://m.p.svc/"}), {}, {"rest": "http://m.p.svc", "grpc": "grpc://m.p.svc:8085"}),
    (service(address={"url": f"https://{INSIDE}:8443"}, annotations=PROTECTED), {},
     {"rest": f"https://{INSIDE}:8443"}),
    (service(address={"url": "http://a"}), {"rest_url": "https://route", "grpc_url": "grpcs://route:443"},
     {"rest": "https://route", "grpc": "grpcs://route:443"}),
    (service(address={"url": "http://a"}), {"rest_url": "https://route"},
     {"rest": "https://route", "grpc": "grpcs://route:8085"}),
    (service(address={"url": "http://m.p.svc"}), {"serving": "vllm"}, {"openai": "openai+http://m.p.svc"}),
    (service(address={"url": f"https://{INSIDE}:8443"}, annotations=PROTECTED), {"serving": "vllm"},
     {"openai": f"openai+https://{INSIDE}:8443"}),
])
def test_where_the_model_answers(state: InferenceService, settings: Any, expected: dict[str, str]) -> None:
    assert addresses(state, KserveSection(**settings)) == expected
