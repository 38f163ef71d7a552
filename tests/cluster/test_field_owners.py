"""Whose the fields of an InferenceService are: ours, the dashboard's, an administrator's. Against a real API server."""

from __future__ import annotations

import itertools
import time
from typing import Any

import pytest
import yaml

from llm_detox.cluster.api import Cluster, FieldConflict
from llm_detox.cluster.objects import AUTH, STOP, InferenceService, Manifest
from llm_detox.errors import DetoxError
from llm_detox.recipe.cluster import ConnectionSection
from llm_detox.recipe.deploy import DeploySection, KserveSection
from llm_detox.serve.kserve.apply import apply, put_back
from llm_detox.serve.kserve.render import Wanted, inference_service
from tests.cluster.server import ApiServer, moved
from tests.manifests.kustomize import overlay

OLD, NEW = "1" * 64, "2" * 64
NAME, DASHBOARD = "llm-detox", "dashboard"
_numbers = itertools.count(1)


@pytest.fixture
def cluster(api_server: ApiServer) -> Cluster:
    from kubernetes import client

    namespace, api = f"fields-{next(_numbers)}", api_server.client()
    client.CoreV1Api(api).create_namespace({"metadata": {"name": namespace}})
    return Cluster(api, namespace, away_seconds=30)


def wanted(cluster: Cluster, version: str = OLD, *, protected: bool = False, **settings: Any) -> Wanted:
    section = DeploySection(target="kserve", kserve=KserveSection(**settings))
    return inference_service(section, ConnectionSection(), f"s3://llm-detox/models/{version}",
                             namespace=cluster.namespace, protected=protected)


def live(cluster: Cluster) -> InferenceService:
    service = cluster.service(NAME)
    assert service is not None
    return service


def predictor(cluster: Cluster) -> Manifest:
    spec: Manifest = live(cluster).manifest["spec"]["predictor"]
    return spec


def somebody(cluster: Cluster, patch: Manifest, *, manager: str = DASHBOARD) -> None:
    """Change the model as another field manager."""
    from kubernetes import client

    api: Any = cluster._api
    client.CustomObjectsApi(api).patch_namespaced_custom_object(
        "serving.kserve.io", "v1beta1", cluster.namespace, "inferenceservices", NAME, patch, field_manager=manager)


def annotate(cluster: Cluster, key: str, value: str) -> None:
    somebody(cluster, {"metadata": {"annotations": {key: value}}})


def test_the_same_wish_twice_changes_nothing(cluster: Cluster) -> None:
    assert apply(cluster, wanted(cluster))
    before = live(cluster)
    assert not apply(cluster, wanted(cluster))
    assert live(cluster).resource_version == before.resource_version


def test_a_new_version_is_a_change(cluster: Cluster) -> None:
    apply(cluster, wanted(cluster))
    assert apply(cluster, wanted(cluster, NEW))
    assert predictor(cluster)["model"]["storage"]["path"] == f"models/{NEW}"


def test_protection_and_exposure_that_others_have_set_stay(cluster: Cluster) -> None:
    apply(cluster, wanted(cluster))
    somebody(cluster, {"metadata": {"annotations": {AUTH: "true", "opendatahub.io/hardware-profile-name": "gpu"},
                                    "labels": {"networking.kserve.io/visibility": "exposed"}}})
    apply(cluster, wanted(cluster, NEW, protected=True))
    service = live(cluster)
    assert service.is_protected
    assert service.annotations["opendatahub.io/hardware-profile-name"] == "gpu"
    assert service.labels["networking.kserve.io/visibility"] == "exposed"


@pytest.mark.parametrize(("patch", "path"), [
    ({"metadata": {"annotations": {"openshift.io/display-name": "Our best"}}}, ("metadata", "annotations")),
    ({"spec": {"predictor": {"minReplicas": 2, "maxReplicas": 4}}}, ("spec", "predictor")),
    ({"spec": {"predictor": {"model": {"resources": {"limits": {"memory": "48Gi"}}}}}},
     ("spec", "predictor", "model", "resources", "limits")),
    ({"spec": {"predictor": {"model": {"env": [{"name": "A", "value": "b"}]}}}}, ("spec", "predictor", "model")),
])
def test_what_the_recipe_leaves_open_stays_as_others_want_it(cluster: Cluster, patch: Manifest,
                                                             path: tuple[str, ...]) -> None:
    apply(cluster, wanted(cluster))
    somebody(cluster, patch)
    apply(cluster, wanted(cluster, NEW))
    value, mine = live(cluster).manifest, patch
    for key in path:
        value, mine = value[key], mine[key]
    assert {key: value[key] for key in mine} == mine


def test_a_field_that_others_have_set_otherwise_is_a_failure_that_names_them(cluster: Cluster) -> None:
    apply(cluster, wanted(cluster))
    somebody(cluster, {"spec": {"predictor": {"minReplicas": 2, "maxReplicas": 2}}})
    with pytest.raises(DetoxError, match=r"dashboard: spec\.predictor\.m..Replicas") as caught:
        apply(cluster, wanted(cluster, NEW, replicas=3))
    assert "null leaves a field to others" in str(caught.value.remedy)
    assert predictor(cluster)["model"]["storage"]["path"] == f"models/{OLD}", "nothing was changed"


def test_what_the_recipe_wants_no_more_goes(cluster: Cluster) -> None:
    apply(cluster, wanted(cluster, node_selector={"gpu": "a100"}))
    assert "nodeSelector" in predictor(cluster)
    apply(cluster, wanted(cluster))
    assert "nodeSelector" not in predictor(cluster)


def test_a_stopped_model_is_started_and_the_log_says_so(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    apply(cluster, wanted(cluster))
    annotate(cluster, STOP, "true")
    assert apply(cluster, wanted(cluster)), "starting it is a change"
    assert not live(cluster).is_stopped
    assert "it was stopped; starting it" in capsys.readouterr().err


@pytest.mark.parametrize("before", ["true", "false"])
@pytest.mark.parametrize(("auth", "after"), [("on", True), ("off", False)])
def test_the_recipe_protects_and_opens_a_model_whoever_did_the_reverse(cluster: Cluster, before: str, auth: str,
                                                                       after: bool) -> None:
    apply(cluster, wanted(cluster))
    annotate(cluster, AUTH, before)
    apply(cluster, wanted(cluster, auth=auth))
    assert live(cluster).is_protected == after


def test_a_model_can_be_made_protected_and_exposed_from_the_first_moment(cluster: Cluster) -> None:
    apply(cluster, wanted(cluster, auth="on", expose="on"))
    assert live(cluster).is_protected
    assert live(cluster).labels["networking.kserve.io/visibility"] == "exposed"
    apply(cluster, wanted(cluster, protected=True))
    assert live(cluster).is_protected, "it is not taken off by the next deployment"


def test_putting_back_restores_our_fields_and_leaves_what_others_changed_meanwhile(cluster: Cluster) -> None:
    apply(cluster, wanted(cluster, memory="8Gi"))
    before, failed = live(cluster), wanted(cluster, NEW, node_selector={"gpu": "a100"}, auth="on")
    apply(cluster, failed)
    somebody(cluster, {"spec": {"predictor": {"labels": {"team": "support"}}}})
    put_back(cluster, before, failed)
    after = live(cluster)
    assert after.annotations == before.annotations
    assert predictor(cluster).pop("labels") == {"team": "support"}
    spec = {key: value for key, value in predictor(cluster).items() if key != "labels"}
    assert spec == before.manifest["spec"]["predictor"]
    assert apply(cluster, wanted(cluster, NEW)), "and the next deployment finds its fields"


def test_a_model_that_was_stopped_is_stopped_again_when_the_new_version_fails(cluster: Cluster) -> None:
    apply(cluster, wanted(cluster))
    annotate(cluster, STOP, "true")
    before, failed = live(cluster), wanted(cluster, NEW)
    apply(cluster, failed)
    put_back(cluster, before, failed)
    assert live(cluster).is_stopped


@pytest.mark.parametrize("arguments", [(), ("--server-side",)])
def test_the_model_may_be_applied_by_hand_first(api_server: ApiServer, cluster: Cluster,
                                                arguments: tuple[str, ...]) -> None:
    objects = moved(overlay("overlays/openshift-ai/model"), cluster.namespace)
    api_server.kubectl("apply", *arguments, "-f", "-", text=yaml.safe_dump_all(objects))
    annotate(cluster, AUTH, "true")
    apply(cluster, wanted(cluster, NEW))
    assert predictor(cluster)["model"]["storage"]["path"] == f"models/{NEW}"
    assert live(cluster).is_protected


def test_a_field_that_does_not_exist_is_refused(cluster: Cluster) -> None:
    wish = wanted(cluster)
    wish.meant["spec"]["predictor"]["replicas"] = 3
    begin = time.monotonic()
    with pytest.raises(DetoxError, match="replicas") as caught:
        apply(cluster, wish)
    assert caught.value.remedy == "correct what it names"
    assert time.monotonic() - begin < 20, "not as if the cluster were away"
    assert cluster.service(NAME) is None


def test_a_dry_run_keeps_nothing(cluster: Cluster) -> None:
    apply(cluster, wanted(cluster), dry_run=True)
    assert cluster.service(NAME) is None


def test_conflicts_carry_the_owner_and_the_field(cluster: Cluster) -> None:
    apply(cluster, wanted(cluster))
    with pytest.raises(FieldConflict) as caught:
        cluster.apply(wanted(cluster, NEW).first(), manager="another")
    assert {owner.manager for owner in caught.value.owners} >= {"llm-detox"}
    assert any(owner.field.endswith(".path") for owner in caught.value.owners)
