"""The stand-ins against the real API server and Kubernetes' own controllers: what was recorded is what comes out."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import pytest

from tests.cluster.place import Cloud, Place, place
from tests.serving.running import wait_for
from tests.standins.cluster.api import ApiError
from tests.standins.cluster.recorder import Kind, Recorder, missing_from, row_of
from tests.standins.cluster.scripted import (
    READY,
    Course,
    Look,
    ScriptedKubelet,
    crashed,
    initializer_failed,
    loading,
    ready_after,
    serving,
    starting,
    stays,
)
from tests.standins.kserve.platform import AUTH, FLAVOURS, KSERVE, OPENDATAHUB, STOP, Flavour
from tests.standins.kserve_cases import (
    CASES,
    GONE_WHEN_RECORDED,
    KINDS,
    LEFT_OVER,
    flavour_of,
    inputs_of,
    recording_of,
    without_status_of_others,
)
from tests.standins.recordings import differences, needs_recordings, only
from tests.standins.traces import LAGS, MODEL_STATUS_LAGS, NAMES, WITHOUT_RUNTIME_NAME, states_of

Object = dict[str, Any]
pytestmark = needs_recordings
_SERVER_S_OWN = ("uid", "resourceVersion", "creationTimestamp", "managedFields", "ownerReferences", "deletionTimestamp")
_ADDRESSES = ("clusterIP", "clusterIPs", "nodeName")
_RANDOM = ((re.compile(r"(predictor|guarded)-[0-9a-f]{7,10}(-[a-z0-9]{5})?\b"), r"\1-HASH"),
           (re.compile(r"kube-api-access-[a-z0-9]{5}\b"), "kube-api-access-xxxxx"))
# The connection that was in the namespace of the recordings.
CONNECTION = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "key", "AWS_S3_ENDPOINT": "https://s3.example.com",
              "AWS_S3_BUCKET": "models"}
_NO_SUCH_FORMAT = "Specified runtime does not support specified framework/version"


@contextmanager
def model(cloud: Cloud, flavour: Flavour, **predictor: Any) -> Iterator[tuple[Place, ScriptedKubelet]]:
    """A namespace in which the recorded model has just been applied, `predictor` changed."""
    with place(cloud, flavour) as (here, kubelet):
        objects = inputs_of(f"{flavour.name}/caikit-tgis")
        only(objects, "InferenceService")["spec"]["predictor"].update(predictor)
        here.apply(_without_secrets(objects))
        yield here, kubelet


def _without_secrets(objects: list[Object]) -> list[Object]:
    return [one for one in objects if one["kind"] != "Secret"]


def is_ready(here: Place) -> bool:
    """Ready, by pods of the last change alone."""
    service, deployment = here.service(), here.deployment()
    if not service or not deployment or not service.get("status") or not deployment.get("status"):
        return False
    counts, replicas = deployment["status"], deployment["spec"]["replicas"]
    conditions = {one["type"]: one["status"] for one in service["status"]["conditions"]}
    return (conditions.get("Ready") == "True" and service["status"]["modelStatus"]["transitionStatus"] == "UpToDate"
            and service["status"]["observedGeneration"] == deployment["metadata"]["generation"]
            and all(counts.get(key) == replicas for key in ("updatedReplicas", "replicas", "availableReplicas")))


def transition(here: Place) -> str:
    return str(((here.service() or {}).get("status") or {}).get("modelStatus", {}).get("transitionStatus", ""))


# Each recorded case, field by field


def plain(one: Object, here: Place) -> Object:
    """An object of the server's as recordings show it: without ids, addresses, times and random names."""
    text = json.dumps(one).replace(f".{here.namespace}.svc", ".llm-detox.svc").replace(
        f"-{here.namespace}.example.com", "-llm-detox.example.com").replace(
        json.dumps(here.namespace), '"llm-detox"')
    for pattern, word in _RANDOM:
        text = pattern.sub(word, text)
    result: Object = json.loads(text)
    metadata = result["metadata"]
    for key in _SERVER_S_OWN:
        metadata.pop(key, None)
    annotations = metadata.get("annotations", {})
    for key in [key for key in annotations if key.startswith("deployment.kubernetes.io/")]:
        del annotations[key]
    for key in _ADDRESSES:
        result.get("spec", {}).pop(key, None)
    if result["kind"] == "Pod":
        metadata["labels"]["pod-template-hash"] = "HASH"
    return without_status_of_others(result)


def of_kind(kind: str, objects: list[Object], here: Place) -> dict[str, Object]:
    """Those of a kind by name, as recordings show them."""
    return {one["metadata"]["name"]: one for one in (plain(one, here) for one in objects if one["kind"] == kind)}


@pytest.mark.parametrize("case", CASES)
def test_the_cluster_makes_of_each_case_what_was_recorded(cloud: Cloud, case: str) -> None:
    objects, recorded = inputs_of(case), recording_of(case)
    with place(cloud, flavour_of(case), connection=CONNECTION, bundle="an authority") as (here, _):
        here.apply(_without_secrets(objects))
        kind = "InferenceGraph" if case.endswith("guard-graph") else "InferenceService"
        name = only(objects, kind)["metadata"]["name"]
        wait_for(lambda: _is_ready(here, kind, name))
        wrong = []
        for one in (kind, *KINDS):
            live = [other for other in here.api.list(one, here.namespace) if _of_the_model(other)]
            ours, theirs = of_kind(one, live, here), of_kind(one, recorded, here)
            for left_over in LEFT_OVER.get(case, ()):
                theirs.pop(left_over, None)
            if one not in GONE_WHEN_RECORDED.get(case, ()) and (kind, one) != ("InferenceGraph", "Pod"):
                wrong += differences(theirs, ours, one)
    assert wrong == []


def _is_ready(here: Place, kind: str, name: str) -> bool:
    conditions = ((here.api.get(kind, here.namespace, name) or {}).get("status") or {}).get("conditions", ())
    wanted = "PredictorReady" if kind == "InferenceService" else "Ready"  # an exposed model waits for its Route
    return any((one["type"], one["status"], one.get("reason")) in (
        (wanted, "True", "NewReplicaSetAvailable"), (wanted, "True", None)) for one in conditions)


def _of_the_model(one: Object) -> bool:
    """Not the sample's own guard, which is applied beside the graph and was not recorded."""
    return one["metadata"]["name"] != "llm-detox-guard" and not one["metadata"]["name"].startswith("llm-detox-guard-")


# The recorded traces, in kind

ALL_KINDS = {kind for trace in NAMES for kind in row_of([one.service["status"] for one in states_of(trace)])}
BY_CHANCE = {*LAGS, *MODEL_STATUS_LAGS, *WITHOUT_RUNTIME_NAME}  # states that stand for a moment


def recorded_row(trace: str, begins: float = 0.0) -> list[Kind]:
    return row_of([one.service["status"] for one in states_of(trace)
                   if one.seconds >= begins and (trace, one.seconds) not in BY_CHANCE])


def without(kind: Kind, *fields: str) -> Kind:
    """The kind with these fields left open."""
    return replace(kind, **dict.fromkeys(fields, ""))


def assert_follows(recorder: Recorder, wanted: list[Kind], flavour: Flavour) -> None:
    """Each recorded kind comes, in its order; and none comes that was never recorded.

    The words of a failure stay over whatever comes later, and protection goes with any state: only what else makes up
    a kind must be known.
    """
    def missing() -> list[Kind]:
        return missing_from([without(one, "failure") for one in recorder.row()],
                            [without(one, "failure") for one in wanted])

    with suppress(AssertionError):
        wait_for(lambda: not missing(), 10)
    assert missing() == [], recorder.row()
    known = {without(one, "failure", "scheme") for one in ALL_KINDS}
    strange = [one for one in recorder.row() if without(one, "failure", "scheme") not in known]
    assert strange == [], f"{flavour.name} shows what was never recorded"


def other_path(here: Place, path: str) -> None:
    form: Object = {"storageUri": f"s3://models/{path}"}
    if here.flavour == OPENDATAHUB:
        form = {"storage": {"path": path}}
    here.change({"spec": {"predictor": {"model": form}}})


def of_path(path: str) -> Callable[[Object], bool]:
    key = "internal.serving.kserve.io/storage-initializer-sourceuri"
    return lambda pod: str(pod["metadata"]["annotations"][key]).endswith(path)


def goes_through(here: Place, kubelet: ScriptedKubelet, *steps: tuple[Look, str],
                 where: Callable[[Object], bool] = lambda _: True) -> None:
    """One look after the other, each until KServe's status says this state of the model."""
    for look, state in steps:
        kubelet.play(stays(look), where=where)
        wait_for(lambda state=state: ((here.service() or {}).get("status") or {}).get("modelStatus", {}).get(
            "states", {}).get("targetModelState") == state)


@pytest.mark.parametrize("flavour", FLAVOURS, ids=lambda one: one.name)
def test_a_first_start_goes_through_every_failure_and_heals(cloud: Cloud, flavour: Flavour) -> None:
    with place(cloud, flavour) as (here, kubelet), Recorder(cloud.server.client(), here.namespace) as recorder:
        kubelet.play(stays(starting))
        here.apply(_without_secrets(inputs_of(f"{flavour.name}/caikit-tgis")))
        goes_through(
            here, kubelet, (starting, "Pending"), (loading, "Loading"),
            (initializer_failed("Traceback: botocore.exceptions.ClientError"), "FailedToLoad"), (starting, "Pending"),
            (crashed("CUDA out of memory"), "FailedToLoad"), (starting, "Pending"), (serving, "Loaded"))
        wait_for(lambda: is_ready(here))
        assert_follows(recorder, recorded_row("first-start-through-every-failure"), flavour)
        service = here.service()
        assert service is not None
        assert service["status"]["modelStatus"]["lastFailureInfo"]["message"] == "CUDA out of memory"


@pytest.mark.parametrize("flavour", FLAVOURS, ids=lambda one: one.name)
def test_a_replacement_that_loads_slowly_is_never_ready_before(cloud: Cloud, flavour: Flavour) -> None:
    with model(cloud, flavour) as (here, kubelet):
        wait_for(lambda: is_ready(here))
        with Recorder(cloud.server.client(), here.namespace) as recorder:
            kubelet.play(stays(starting), where=of_path("b"))
            other_path(here, "models/detox/b")
            goes_through(here, kubelet, (starting, "Pending"), (loading, "Loading"), (starting, "Pending"),
                         (serving, "Loaded"), where=of_path("b"))
            wait_for(lambda: is_ready(here) and all(of_path("b")(pod) for pod in here.pods()))
            assert_follows(recorder, recorded_row("replace-slow", 0.6), flavour)


def test_a_crash_a_way_back_a_stop_a_start_and_a_protection(cloud: Cloud) -> None:
    with model(cloud, OPENDATAHUB) as (here, kubelet), Recorder(cloud.server.client(), here.namespace) as recorder:
        wait_for(lambda: is_ready(here))
        kubelet.play(stays(starting), where=of_path("crash"))
        other_path(here, "models/detox/crash")
        goes_through(here, kubelet, (starting, "Pending"), (loading, "Loading"),
                     (crashed("CUDA out of memory"), "FailedToLoad"), where=of_path("crash"))
        other_path(here, "models/detox/abc123")
        wait_for(lambda: is_ready(here))
        here.change({"metadata": {"annotations": {STOP: "true"}}})
        wait_for(lambda: here.deployment() is None and not here.pods() and transition(here) == "")
        kubelet.play(stays(starting))  # until KServe has seen it: it would skip what is over before it looks
        here.change({"metadata": {"annotations": {STOP: "false"}}})
        goes_through(here, kubelet, (starting, "Pending"), (serving, "Loaded"))
        wait_for(lambda: is_ready(here))
        assert "lastFailureInfo" not in (here.service() or {})["status"]["modelStatus"], "stopping forgets it"
        here.change({"metadata": {"annotations": {AUTH: "true"}}})
        wait_for(lambda: (here.service() or {})["status"]["address"]["url"].endswith(":8443") and is_ready(here))
        assert_follows(recorder, recorded_row("replace-crash"), OPENDATAHUB)


@pytest.mark.parametrize("flavour", FLAVOURS, ids=lambda one: one.name)
def test_a_rolling_update_of_two_replicas_is_ready_all_the_way(cloud: Cloud, flavour: Flavour) -> None:
    rolling = {"minReplicas": 2, "maxReplicas": 2, "deploymentStrategy": {"type": "RollingUpdate"}}
    with model(cloud, flavour, **rolling) as (here, kubelet):
        wait_for(lambda: is_ready(here))
        with Recorder(cloud.server.client(), here.namespace) as recorder:
            kubelet.play(Course(((0.0, loading), (1.2, starting), (2.4, serving))), where=of_path("b"))
            other_path(here, "models/detox/b")
            wait_for(lambda: is_ready(here) and len(here.pods()) == 2 and all(map(of_path("b"), here.pods())))
            assert_follows(recorder, recorded_row("rolling-two-replicas"), flavour)
            assert {one.ready for one in recorder.row()} == {"True"}, "the old pods answer for the new ones"


@pytest.mark.parametrize("flavour", FLAVOURS, ids=lambda one: one.name)
def test_after_a_stop_and_a_start_the_observed_generation_begins_again(cloud: Cloud, flavour: Flavour) -> None:
    with model(cloud, flavour) as (here, _):
        wait_for(lambda: is_ready(here))
        other_path(here, "models/detox/b")
        wait_for(lambda: is_ready(here) and all(map(of_path("b"), here.pods())))
        with Recorder(cloud.server.client(), here.namespace) as recorder:
            here.change({"metadata": {"annotations": {STOP: "true"}}})
            wait_for(lambda: here.deployment() is None and not here.pods())
            assert here.api.get("Service", here.namespace, "llm-detox-predictor") is None
            wait_for(lambda: "observedGeneration" not in (here.service() or {})["status"])
            here.change({"metadata": {"annotations": {STOP: "false"}}})
            wait_for(lambda: is_ready(here))
            assert_follows(recorder, recorded_row("stop-start"), flavour)
        service = here.service()
        assert service is not None
        assert (service["metadata"]["generation"], service["status"]["observedGeneration"]) == (2, 1)


def test_scaling_the_deployment_lets_the_observed_generation_run_ahead(cloud: Cloud) -> None:
    with model(cloud, OPENDATAHUB) as (here, _):
        wait_for(lambda: is_ready(here))
        here.change({"spec": {"predictor": {"minReplicas": 2, "maxReplicas": 2}}})
        wait_for(lambda: is_ready(here) and len(here.pods()) == 2)
        here.change({"metadata": {"annotations": {AUTH: "true"}}})
        wait_for(lambda: is_ready(here) and (here.service() or {})["status"]["observedGeneration"] == 3)
        assert (here.service() or {})["metadata"]["generation"] == 2


def test_protection_changes_the_address_and_rolls_the_pods(cloud: Cloud) -> None:
    with model(cloud, OPENDATAHUB) as (here, _), Recorder(cloud.server.client(), here.namespace) as recorder:
        wait_for(lambda: is_ready(here))
        before = {one["metadata"]["uid"] for one in here.pods()}
        for value, ports in (("true", [8443, 8085]), ("false", [80, 8085])):
            here.change({"metadata": {"annotations": {AUTH: value}}})
            wait_for(lambda value=value: is_ready(here) and here.pods()[0]["metadata"]["annotations"][AUTH] == value)
            service = here.api.get("Service", here.namespace, "llm-detox-predictor")
            assert service is not None
            assert [one["port"] for one in service["spec"]["ports"]] == ports
        assert before.isdisjoint(one["metadata"]["uid"] for one in here.pods())
        assert_follows(recorder, recorded_row("auth-toggle"), OPENDATAHUB)


@pytest.mark.parametrize("flavour", FLAVOURS, ids=lambda one: one.name)
def test_a_running_model_stays_ready_on_a_format_that_is_refused(cloud: Cloud, flavour: Flavour) -> None:
    with model(cloud, flavour) as (here, _), Recorder(cloud.server.client(), here.namespace) as recorder:
        wait_for(lambda: is_ready(here))
        here.change({"spec": {"predictor": {"model": {"modelFormat": {"name": "onnx"}}}}})
        wait_for(lambda: transition(here) == "InvalidSpec")
        assert_follows(recorder, recorded_row("running-model-changed-to-a-wrong-format"), flavour)
        model_status = (here.service() or {})["status"]["modelStatus"]
        assert model_status["lastFailureInfo"] == {"reason": "NoSupportingRuntime", "message": _NO_SUCH_FORMAT}
        here.change({"spec": {"predictor": {"model": {"modelFormat": {"name": "caikit"}}}}})
        wait_for(lambda: is_ready(here))


@pytest.mark.parametrize("flavour", FLAVOURS, ids=lambda one: one.name)
def test_a_model_without_its_runtime_waits_for_it(cloud: Cloud, flavour: Flavour) -> None:
    objects = _without_secrets(inputs_of(f"{flavour.name}/caikit-tgis"))
    with place(cloud, flavour) as (here, _), Recorder(cloud.server.client(), here.namespace) as recorder:
        here.apply([one for one in objects if one["kind"] != "ServingRuntime"])
        wait_for(lambda: transition(here) == "InvalidSpec")
        assert_follows(recorder, recorded_row("runtime-not-there"), flavour)
        [event] = wait_for(lambda: here.api.list("Event", here.namespace))
        assert (event["reason"], event["type"], event["message"]) == (
            "InternalError", "Warning",
            "No ServingRuntimes or ClusterServingRuntimes with the name: llm-detox-caikit-tgis")
        here.apply([one for one in objects if one["kind"] == "ServingRuntime"])
        wait_for(lambda: is_ready(here))


# The webhooks, as the API server calls them


def test_a_canary_without_a_name_is_refused_in_the_webhooks_words(cloud: Cloud) -> None:
    with place(cloud, OPENDATAHUB) as (here, _):
        service = only(inputs_of("opendatahub-3.5/caikit-tgis"), "InferenceService")
        nameless: Object = {"model": {"name": "", "modelFormat": {"name": "caikit"}}}
        service["spec"]["canary"] = [{"trafficPercent": 10, "predictor": nameless}]
        with pytest.raises(ApiError) as caught:
            here.apply([service])
        assert ('admission webhook "inferenceservice.kserve-webhook-server.validator" denied the request: '
                "canary[0] predictor.name is required") in str(caught.value)


def test_the_same_object_applied_again_changes_nothing_although_the_webhook_writes_into_it(cloud: Cloud) -> None:
    with model(cloud, OPENDATAHUB) as (here, _):
        wait_for(lambda: is_ready(here))
        before = here.service()
        here.apply([only(inputs_of("opendatahub-3.5/caikit-tgis"), "InferenceService")])
        after = here.service()
        assert before is not None
        assert before == after
        assert before["metadata"]["annotations"]["serving.kserve.io/deploymentMode"] == "Standard"


def test_a_pod_without_its_connection_is_not_admitted(cloud: Cloud) -> None:
    with place(cloud, OPENDATAHUB) as (here, _):
        objects = _without_secrets(inputs_of("opendatahub-3.5/caikit-tgis"))
        only(objects, "InferenceService")["spec"]["predictor"]["model"]["storage"]["key"] = "another"
        here.apply(objects)
        events = wait_for(lambda: [one for one in here.api.list("Event", here.namespace)
                                   if one["reason"] == "FailedCreate"])
        assert "a model whose key another is not in the Secret storage-config" in events[0]["message"]
        assert not here.pods()


def test_a_removed_model_takes_its_objects_with_it(cloud: Cloud) -> None:
    with model(cloud, KSERVE) as (here, _):
        wait_for(lambda: is_ready(here))
        here.api.delete("InferenceService", here.namespace, "llm-detox")
        for kind in ("InferenceService", "Deployment", "Service", "HorizontalPodAutoscaler", "Ingress", "Pod"):
            wait_for(lambda kind=kind: not here.api.list(kind, here.namespace))


def test_each_annotation_of_the_predictor_reaches_the_pods(cloud: Cloud) -> None:
    with model(cloud, OPENDATAHUB) as (here, _):
        wait_for(lambda: is_ready(here))
        here.change({"spec": {"predictor": {"annotations": {"llm-detox/spec": "wanted"}}}})
        wait_for(lambda: is_ready(here) and [one["metadata"]["annotations"].get("llm-detox/spec") for one in here.pods()
                                            ] == ["wanted"])


def test_a_load_that_fails_for_ever_stays_blocked_and_is_not_ready(cloud: Cloud) -> None:
    with place(cloud, KSERVE) as (here, kubelet):
        kubelet.play(stays(initializer_failed("no such key")))
        here.apply(_without_secrets(inputs_of("kserve-0.20/caikit-tgis")))
        wait_for(lambda: transition(here) == "BlockedByFailedLoad")
        kubelet.play(ready_after(0.4))
        wait_for(lambda: is_ready(here))
        kubelet.play(READY)
