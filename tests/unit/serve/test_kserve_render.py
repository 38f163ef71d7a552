"""The InferenceService that is sent: kustomize's own YAML with the recipe's choices; and the patch that sets it."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from llm_detox.errors import UsageError
from llm_detox.recipe.cluster import ConnectionSection, toleration
from llm_detox.recipe.deploy import DeploySection, KserveSection
from llm_detox.serve.kserve.deploy import plan
from llm_detox.serve.kserve.patch import last_applied, merge_patch, with_last_applied
from llm_detox.serve.kserve.render import PublishedAddress, inference_service

DIGEST = "ab" * 32
ADDRESS = f"s3://models/teams/detox/{DIGEST}"


def rendered(platform: str = "kserve", *, address: str = ADDRESS, name: str = "llm-detox", **settings: Any) -> Any:
    section = DeploySection(target="kserve", name=name, kserve=KserveSection(platform=platform, **settings))
    return inference_service(section, ConnectionSection(), address, namespace="project")


@pytest.mark.parametrize("platform", ["kserve", "openshift-ai"])
def test_the_defaults_of_the_recipe_are_those_of_the_manifests(platform: str) -> None:
    """Nothing is described twice: what the deploy step sends is what `kubectl apply -k` sends, but for the version."""
    from tests.manifests.kustomize import overlay, pick

    applied = copy.deepcopy(pick(overlay(f"overlays/{platform}/model"), "InferenceService"))
    sent = rendered(platform, address="s3://llm-detox/models/VERSION")
    del sent["spec"]["predictor"]["annotations"], sent["metadata"]["annotations"]["llm-detox/address"]
    sent["spec"]["predictor"]["model"].get("storage", {}).pop("parameters", None)
    applied["metadata"]["namespace"] = "project"
    assert sent == applied


@pytest.mark.parametrize("platform", ["kserve", "openshift-ai"])
def test_the_yaml_in_the_package_is_what_kustomize_makes_of_the_manifests(platform: str) -> None:
    from importlib import resources

    from tests.manifests.kustomize import overlay, pick

    packaged = resources.files("llm_detox.serve.kserve").joinpath("rendered", f"{platform}.yaml").read_text("utf-8")
    assert yaml.safe_load(packaged) == pick(overlay(f"overlays/{platform}/model"), "InferenceService"), "make manifests"


def test_the_connection_and_the_account_are_the_recipes() -> None:
    section = DeploySection(target="kserve", kserve=KserveSection(platform="openshift-ai", account="own-account"))
    thing = inference_service(section, ConnectionSection(s3_secret="own-s3"), ADDRESS, namespace="project")
    assert thing["spec"]["predictor"]["model"]["storage"]["key"] == "own-s3"
    assert thing["metadata"]["annotations"]["opendatahub.io/connections"] == "own-s3"
    assert thing["spec"]["predictor"]["serviceAccountName"] == "own-account"


def test_the_version_is_in_the_address_and_on_the_pods() -> None:
    thing = rendered()
    assert thing["spec"]["predictor"]["model"]["storageUri"] == ADDRESS
    assert thing["spec"]["predictor"]["annotations"] == {"llm-detox/version": DIGEST}


def test_on_openshift_ai_the_model_comes_over_its_connection() -> None:
    thing = rendered("openshift-ai")
    assert "storageUri" not in thing["spec"]["predictor"]["model"]
    assert thing["spec"]["predictor"]["model"]["storage"] == {
        "key": "llm-detox-s3", "path": f"teams/detox/{DIGEST}", "parameters": {"bucket": "models"}}
    assert thing["metadata"]["annotations"]["opendatahub.io/connection-path"] == f"teams/detox/{DIGEST}"


def test_sizes_and_placement_come_from_the_recipe() -> None:
    thing = rendered(gpus=2, gpu_resource="amd.com/gpu", cpu="6", memory="48Gi", replicas=3,
                     tolerations=["amd=yes:NoExecute"], node_selector={"zone": "a"})
    predictor = thing["spec"]["predictor"]
    for amounts in predictor["model"]["resources"].values():
        assert amounts == {"cpu": "6", "memory": "48Gi", "amd.com/gpu": "2"}
    assert (predictor["minReplicas"], predictor["maxReplicas"]) == (3, 3)
    assert predictor["deploymentStrategy"] == {"type": "RollingUpdate"}
    assert predictor["tolerations"] == [{"key": "amd", "operator": "Equal", "value": "yes", "effect": "NoExecute"}]
    assert predictor["nodeSelector"] == {"zone": "a"}


def test_without_gpus_none_is_asked_for_and_none_tolerated() -> None:
    predictor = rendered(gpus=0)["spec"]["predictor"]
    assert not any("gpu" in key for amounts in predictor["model"]["resources"].values() for key in amounts)
    assert "tolerations" not in predictor


@pytest.mark.parametrize(("text", "meant"), [
    ("gpu", {"key": "gpu", "operator": "Exists"}),
    ("gpu:NoSchedule", {"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}),
    ("gpu=a100", {"key": "gpu", "operator": "Equal", "value": "a100"}),
])
def test_tolerations_are_written_as_kubectl_writes_taints(text: str, meant: dict[str, str]) -> None:
    assert toleration(text) == meant


def test_a_canary_stands_beside_under_a_name_of_its_own() -> None:
    section = DeploySection(target="kserve", kserve=KserveSection(platform="kserve", rollout="canary"))
    canary, model = plan(section, ConnectionSection(), ADDRESS, namespace="project")
    assert (canary["metadata"]["name"], model["metadata"]["name"]) == ("llm-detox-canary", "llm-detox")
    assert canary["spec"] == model["spec"]


@pytest.mark.parametrize("address", ["models/x", "s3://bucket", "s3://bucket/", "s3://BUCKET/x", "https://host/x", "",
                                     "s3://bucket/a b", "s3://bucket/x\n", "s3://bucket/x;rm -rf"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(UsageError, match="not the address of a published model"):
        PublishedAddress.parse(address)


@pytest.mark.parametrize(("name", "told"), [("m" * 47, "54 characters")])
def test_a_name_that_is_too_long_with_its_canary_is_refused(name: str, told: str) -> None:
    section = DeploySection(target="kserve", name=name, kserve=KserveSection(rollout="canary"))
    with pytest.raises(UsageError, match=told):
        plan(section, ConnectionSection(), ADDRESS, namespace="p")


VALUES = st.recursive(st.integers() | st.booleans() | st.text("ab", max_size=3),
                      lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abcd"), inner))
OBJECTS = st.dictionaries(st.sampled_from("abcd"), VALUES)


def applied(live: Any, patch: Any) -> Any:
    """RFC 7386, by which an API server merges."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(live) if isinstance(live, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = applied(merged.get(key), value)
    return merged


@given(live=OBJECTS, wanted=OBJECTS)
def test_after_the_patch_all_that_is_wanted_is_there_and_nothing_is_left_to_do(live: Any, wanted: Any) -> None:
    after = applied(live, merge_patch({}, live, wanted))
    assert not merge_patch(wanted, after, wanted)


@given(last=OBJECTS, others=OBJECTS, wanted=OBJECTS)
def test_fields_that_nobody_here_ever_wanted_stay(last: Any, others: Any, wanted: Any) -> None:
    foreign = {f"x{key}": value for key, value in others.items()}
    after = applied({**last, **foreign}, merge_patch(last, {**last, **foreign}, wanted))
    assert {key: after[key] for key in foreign} == foreign


@given(last=OBJECTS, wanted=OBJECTS)
def test_fields_that_are_wanted_no_more_go(last: Any, wanted: Any) -> None:
    assert set(applied(last, merge_patch(last, last, wanted))) == set(wanted)


def test_the_note_of_what_was_wanted_is_the_one_that_kubectl_keeps() -> None:
    noted = with_last_applied(rendered())
    text = noted["metadata"]["annotations"]["kubectl.kubernetes.io/last-applied-configuration"]
    assert json.loads(text) == rendered()
    assert last_applied(noted) == rendered()
    assert with_last_applied(noted) == noted
