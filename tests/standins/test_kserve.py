"""The KServe stand-in makes of each recorded `given.yaml` what the real webhooks and controllers made."""

from __future__ import annotations

import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from tests.standins import Unmeasured
from tests.standins.kserve.controller import objects_of
from tests.standins.kserve.graph import graph_objects_of, graph_status
from tests.standins.kserve.platform import FLAVOURS, KSERVE, OPENDATAHUB, ReconcileFailed, Refused
from tests.standins.kserve.pods import mutate_pod
from tests.standins.kserve.runtimes import SpecRefused
from tests.standins.kserve.status import loading_of, status_of
from tests.standins.kserve.webhooks import admit_graph, admit_service
from tests.standins.kserve_cases import (
    CASES,
    GONE_WHEN_RECORDED,
    KINDS,
    LEFT_OVER,
    MODELS,
    flavour_of,
    inputs_of,
    recording_of,
    without_status_of_others,
)
from tests.standins.kubernetes import admit_pod, pod_of, with_defaults
from tests.standins.recordings import ROOT, differences, needs_recordings, only

Object = dict[str, Any]
pytestmark = needs_recordings
def results_of(case: str) -> list[Object]:
    """What the stand-ins make of the case, the API server's own part included."""
    objects, flavour = inputs_of(case), flavour_of(case)
    service = admit_service(only(objects, "InferenceService"))
    result = [with_defaults(one) for one in objects_of(service, objects, flavour)]
    template_hash = only(recording_of(case), "Pod")["metadata"]["labels"]["pod-template-hash"]
    pod = mutate_pod(admit_pod(pod_of(only(result, "Deployment"), template_hash)), objects, flavour)
    return [*result, pod, *(with_defaults(one) for one in objects if one["kind"] == "Service")]


def of_kind(kind: str, objects: list[Object]) -> dict[str, Object]:
    """Those of a kind, by name, without the status that others write."""
    return {one["metadata"]["name"]: without_status_of_others(one) for one in objects if one["kind"] == kind}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", MODELS)
def test_each_object_of_a_model_is_made_field_by_field_as_recorded(case: str, kind: str) -> None:
    theirs, ours = of_kind(kind, recording_of(case)), of_kind(kind, results_of(case))
    for name in LEFT_OVER.get(case, ()):
        theirs.pop(name, None)
    if kind in GONE_WHEN_RECORDED.get(case, ()):
        assert not theirs, "it was recorded after all: compare it"
        first = f"{case.partition('/')[0]}/caikit-tgis"
        assert set(ours) == set(of_kind(kind, results_of(first)))
        return
    assert differences(theirs, ours) == []


@pytest.mark.parametrize("case", MODELS)
def test_the_webhooks_leave_an_inferenceservice_as_recorded(case: str) -> None:
    theirs = {key: value for key, value in only(recording_of(case), "InferenceService").items() if key != "status"}
    assert differences(theirs, admit_service(only(inputs_of(case), "InferenceService"))) == []


@pytest.mark.parametrize("case", MODELS)
def test_the_status_of_a_model_follows_from_its_deployment_and_pods_as_recorded(case: str) -> None:
    objects = recording_of(case)
    service = admit_service(only(inputs_of(case), "InferenceService"))
    pods = [one for one in objects if one["kind"] == "Pod"]
    status = status_of(service, flavour_of(case), only(objects, "Deployment"), loading_of(pods))
    assert differences(only(objects, "InferenceService")["status"], status) == []


def test_an_inferencegraph_becomes_a_router_behind_tls_as_recorded() -> None:
    case = "opendatahub-3.5/guard-graph"
    graph, objects = admit_graph(only(inputs_of(case), "InferenceGraph")), recording_of(case)
    ours = [{**graph, "status": graph_status(only(objects, "Deployment"))},
            *(with_defaults(one) for one in graph_objects_of(graph, OPENDATAHUB))]
    key = {one["kind"]: without_status_of_others(one) for one in objects}
    assert differences(key, {one["kind"]: without_status_of_others(one) for one in ours}) == []


def test_a_model_whose_runtime_is_missing_or_does_not_take_its_format_is_refused() -> None:
    objects = inputs_of("opendatahub-3.5/caikit-tgis")
    service = admit_service(only(objects, "InferenceService"))
    with pytest.raises(SpecRefused, match=r"^RuntimeNotRecognized: Waiting for runtime to become available$"):
        objects_of(service, [], OPENDATAHUB)
    service["spec"]["predictor"]["model"]["modelFormat"]["name"] = "vLLM"
    with pytest.raises(SpecRefused, match=r"^NoSupportingRuntime: Specified runtime does not support"):
        objects_of(service, objects, OPENDATAHUB)


def test_a_host_name_over_63_characters_fails_on_plain_kserve_only() -> None:
    objects = inputs_of("kserve-0.20/caikit-tgis")
    service = admit_service(only(objects, "InferenceService"))
    service["metadata"]["name"] = "m" * (63 - len("-predictor-llm-detox"))
    assert objects_of(service, objects, KSERVE)
    service["metadata"]["name"] += "m"
    with pytest.raises(ReconcileFailed, match=r"^failed creating host name: invalid domain name$"):
        objects_of(service, objects, KSERVE)
    assert objects_of(service, objects, OPENDATAHUB)


def test_keda_without_its_kinds_fails() -> None:
    objects = inputs_of("opendatahub-3.5/caikit-tgis")
    service = admit_service(only(objects, "InferenceService"))
    service["metadata"]["annotations"]["serving.kserve.io/autoscalerClass"] = "keda"
    with pytest.raises(ReconcileFailed, match='no matches for kind "ScaledObject"'):
        objects_of(service, objects, OPENDATAHUB)


def test_a_canary_without_a_name_is_denied_in_the_webhooks_words() -> None:
    service = deepcopy(only(inputs_of("opendatahub-3.5/caikit-tgis"), "InferenceService"))
    service["spec"]["canary"] = [{"weight": 10, "predictor": {"model": {}}}]
    words = ('admission webhook "inferenceservice.kserve-webhook-server.validator" denied the request: '
             "canary[0] predictor.name is required")
    with pytest.raises(Refused, match=f"^{re.escape(words)}$"):
        admit_service(service)


def test_a_stopped_model_has_no_objects() -> None:
    objects = inputs_of("opendatahub-3.5/caikit-tgis")
    service = admit_service(only(objects, "InferenceService"))
    service["metadata"]["annotations"]["serving.kserve.io/stop"] = "true"
    assert objects_of(service, objects, OPENDATAHUB) == []


def test_what_nobody_recorded_is_refused_and_not_guessed() -> None:
    objects = deepcopy(inputs_of("opendatahub-3.5/caikit-tgis"))
    service = admit_service(only(objects, "InferenceService"))
    service["spec"]["predictor"]["model"]["storage"]["parameters"] = {"bucket": "other"}
    with pytest.raises(Unmeasured, match="storage"):
        objects_of(service, objects, OPENDATAHUB)


def test_there_are_recordings_of_both_platforms() -> None:
    assert {case.partition("/")[0] for case in CASES} == {one.name for one in FLAVOURS}
    assert all(Path(ROOT, "kserve", case, "made.yaml").is_file() for case in CASES)
