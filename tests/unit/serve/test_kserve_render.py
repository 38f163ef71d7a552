"""The InferenceService that is sent: kustomize's own YAML with the recipe's choices."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from llm_detox.errors import UsageError
from llm_detox.recipe.cluster import ConnectionSection, toleration
from llm_detox.recipe.deploy import DeploySection, KserveSection
from llm_detox.serve.kserve.deploy import plan
from llm_detox.serve.kserve.render import PublishedAddress, Wanted, check_names, inference_service, merged

DIGEST = "ab" * 32
ADDRESS = f"s3://models/teams/detox/{DIGEST}"


def wanted(platform: str = "kserve", *, address: str = ADDRESS, name: str = "llm-detox", protected: bool = False,
           exposed: bool = False, **settings: Any) -> Wanted:
    section = DeploySection(target="kserve", name=name, kserve=KserveSection(platform=platform, **settings))
    return inference_service(section, ConnectionSection(), address, namespace="project", protected=protected,
                             exposed=exposed)


def rendered(platform: str = "kserve", **given: Any) -> Any:
    """The whole object, as it is made."""
    return wanted(platform, **given).first()


@pytest.mark.parametrize("platform", ["kserve", "openshift-ai"])
def test_the_defaults_of_the_recipe_are_those_of_the_manifests(platform: str) -> None:
    """Nothing is described twice: what the deploy step sends is what `kubectl apply -k` sends, but for the version."""
    from tests.manifests.kustomize import overlay, pick

    applied = copy.deepcopy(pick(overlay(f"overlays/{platform}/model"), "InferenceService"))
    sent = rendered(platform, address="s3://llm-detox/models/VERSION")
    del sent["spec"]["predictor"]["annotations"], sent["metadata"]["annotations"]["llm-detox/address"]
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
    thing = inference_service(section, ConnectionSection(s3_secret="own-s3"), ADDRESS, namespace="project").meant
    assert thing["spec"]["predictor"]["model"]["storage"]["key"] == "own-s3"
    assert thing["metadata"]["annotations"]["opendatahub.io/connections"] == "own-s3"
    assert thing["spec"]["predictor"]["serviceAccountName"] == "own-account"


def test_the_version_is_in_the_address_and_on_the_pods() -> None:
    thing = rendered()
    assert thing["spec"]["predictor"]["model"]["storageUri"] == ADDRESS
    assert thing["spec"]["predictor"]["annotations"]["llm-detox/version"] == DIGEST


def test_on_openshift_ai_the_model_comes_over_its_connection() -> None:
    thing = rendered("openshift-ai")
    assert "storageUri" not in thing["spec"]["predictor"]["model"]
    assert thing["spec"]["predictor"]["model"]["storage"] == {
        "key": "llm-detox-s3", "path": f"teams/detox/{DIGEST}"}
    assert thing["metadata"]["annotations"]["opendatahub.io/connection-path"] == f"teams/detox/{DIGEST}"


IMAGE = f"oci://registry.example:5000/team/model@sha256:{DIGEST}"


@pytest.mark.parametrize("platform", ["kserve", "openshift-ai"])
def test_an_image_is_served_by_its_digest_without_a_connection(platform: str) -> None:
    thing = rendered(platform, address=IMAGE)
    model = thing["spec"]["predictor"]["model"]
    assert (model["storageUri"], "storage" in model, "args" in model) == (IMAGE, False, False)
    assert thing["spec"]["predictor"]["annotations"]["llm-detox/version"] == f"sha256:{DIGEST}"
    assert thing["metadata"]["annotations"]["llm-detox/address"] == IMAGE
    assert not [name for name in thing["metadata"]["annotations"] if "connection" in name]


def test_vllm_is_told_which_folder_of_an_image_it_serves() -> None:
    model = rendered("openshift-ai", address=IMAGE, serving="vllm")["spec"]["predictor"]["model"]
    assert (model["storageUri"], model["args"]) == (IMAGE, ["--model=/mnt/models/artifacts"])
    assert "args" not in rendered("openshift-ai", serving="vllm")["spec"]["predictor"]["model"]


def test_an_image_by_its_tag_is_refused() -> None:
    with pytest.raises(UsageError, match="served by its digest"):
        rendered(address="oci://registry.example/team/model:stable")


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


@pytest.mark.parametrize(("profile", "names"), [
    ("small", {"opendatahub.io/hardware-profile-name": "small"}),
    ("redhat-ods-applications/l40s", {"opendatahub.io/hardware-profile-name": "l40s",
                                      "opendatahub.io/hardware-profile-namespace": "redhat-ods-applications"})])
def test_a_hardware_profile_says_sizes_and_nodes_and_we_say_none(profile: str, names: dict[str, str]) -> None:
    first = wanted("openshift-ai", hardware_profile=profile)
    thing = first.first()
    assert names.items() <= thing["metadata"]["annotations"].items()
    assert not {"tolerations", "nodeSelector"} & set(thing["spec"]["predictor"])
    assert "resources" not in thing["spec"]["predictor"]["model"]
    assert first.digest != wanted("openshift-ai").digest


@pytest.mark.parametrize(("settings", "words"), [
    ({"cpu": "4", "queue": "gpus"}, "leave out cpu, queue"), ({"platform": "kserve"}, "knows no hardware profiles")])
def test_what_contradicts_a_hardware_profile_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        KserveSection.model_validate({"hardware_profile": "small", **settings})


def test_a_queue_of_kueue_is_named_on_the_model() -> None:
    assert rendered(queue="gpus")["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpus"
    assert "kueue.x-k8s.io/queue-name" not in rendered()["metadata"].get("labels", {})


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
    assert (canary.name, model.name) == ("llm-detox-canary", "llm-detox")
    assert canary.first()["spec"]["predictor"]["model"] == model.first()["spec"]["predictor"]["model"]


@pytest.mark.parametrize(("auth", "live", "protected"), [
    ("keep", True, True), ("on", False, True), ("keep", False, False), ("off", True, False)])
def test_a_canary_is_as_protected_as_the_model_and_never_exposed(auth: str, live: bool, protected: bool) -> None:
    section = DeploySection.model_validate({"target": "kserve", "kserve": {
        "auth": auth, "expose": "on" if protected else "keep", "rollout": "canary"}})
    canary = inference_service(section, ConnectionSection(), ADDRESS, namespace="project", canary=True,
                               protected=live).first()
    assert (canary["metadata"]["annotations"].get("security.opendatahub.io/enable-auth") == "true") == protected
    assert "networking.kserve.io/visibility" not in canary["metadata"]["labels"]
    assert ("llm-detox/protected" in canary["spec"]["predictor"].get("labels", {})) == protected


PREDICTOR = ("minReplicas", "maxReplicas", "deploymentStrategy", "tolerations")


def test_what_the_recipe_leaves_open_is_set_once_and_then_belongs_to_others() -> None:
    wish = wanted("openshift-ai", gpus=None)
    assert not set(PREDICTOR) & wish.meant["spec"]["predictor"].keys()
    assert set(PREDICTOR) < wish.initial["spec"]["predictor"].keys()
    assert "resources" not in wish.meant["spec"]["predictor"]["model"]
    assert wish.initial["spec"]["predictor"]["model"]["resources"]["limits"] == {
        "cpu": "8", "memory": "24Gi", "nvidia.com/gpu": "1"}
    assert "openshift.io/display-name" in wish.initial["metadata"]["annotations"]


def test_what_the_recipe_says_is_meant_every_time() -> None:
    wish = wanted(replicas=2, cpu="4", memory="9Gi", gpus=2, tolerations=["gpu"])
    assert wish.meant["spec"]["predictor"]["minReplicas"] == 2
    assert wish.meant["spec"]["predictor"]["model"]["resources"]["limits"] == {
        "cpu": "4", "memory": "9Gi", "nvidia.com/gpu": "2"}
    assert "tolerations" in wish.meant["spec"]["predictor"]


@pytest.mark.parametrize("platform", ["kserve", "openshift-ai"])
def test_protection_and_exposure_are_not_named_unless_the_recipe_says_so(platform: str) -> None:
    wish = wanted(platform)
    assert wish.switches == {}
    assert "security.opendatahub.io/enable-auth" not in wish.first()["metadata"]["annotations"]


@pytest.mark.parametrize(("platform", "settings", "annotations", "labels"), [
    ("openshift-ai", {"auth": "on"}, {"security.opendatahub.io/enable-auth": "true"}, None),
    ("openshift-ai", {"auth": "off"}, {"security.opendatahub.io/enable-auth": "false"}, None),
    ("openshift-ai", {"auth": "on", "expose": "on"}, {"security.opendatahub.io/enable-auth": "true"},
     {"networking.kserve.io/visibility": "exposed"}),
    ("openshift-ai", {"expose": "off"}, None, {"networking.kserve.io/visibility": None}),
    ("kserve", {"expose": "on"}, None, {"networking.kserve.io/visibility": None}),
    ("kserve", {"expose": "off"}, None, {"networking.kserve.io/visibility": "cluster-local"}),
])
def test_switches_say_what_the_dashboards_check_boxes_say(platform: str, settings: Any, annotations: Any,
                                                          labels: Any) -> None:
    metadata = wanted(platform, **settings).switches["metadata"]
    assert (metadata.get("annotations"), metadata.get("labels")) == (annotations, labels)


@pytest.mark.parametrize(("platform", "settings", "words"), [
    ("openshift-ai", {"expose": "on"}, "an exposed model would answer everybody"),
    ("openshift-ai", {"expose": "on", "auth": "off"}, "an exposed model would answer everybody"),
    ("kserve", {"auth": "on"}, "plain KServe asks nobody for a token"),
])
def test_what_would_open_a_model_to_everybody_is_refused(platform: str, settings: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        wanted(platform, **settings)


def test_the_token_is_not_taken_off_a_model_that_a_route_leads_to() -> None:
    with pytest.raises(UsageError, match="a Route leads to it"):
        wanted("openshift-ai", auth="off", protected=True, exposed=True)
    assert wanted("openshift-ai", auth="off", expose="off", protected=True, exposed=True).switches
    assert wanted("openshift-ai", auth="off", exposed=True).switches, "others have opened it already"


def test_a_model_that_is_protected_already_may_be_exposed() -> None:
    assert wanted("openshift-ai", expose="on", protected=True).switches


@pytest.mark.parametrize(("settings", "protected", "marked"), [
    ({}, True, True), ({}, False, False), ({"auth": "on"}, False, True), ({"auth": "off"}, True, False)])
def test_pods_of_a_protected_model_say_so_to_the_network_policy(settings: Any, protected: bool, marked: bool) -> None:
    labels = wanted("openshift-ai", protected=protected, **settings).meant["spec"]["predictor"].get("labels", {})
    assert (labels.get("llm-detox/protected") == "true") == marked


def test_vllm_reads_the_plain_model_in_the_same_published_folder() -> None:
    model = rendered("openshift-ai", serving="vllm")["spec"]["predictor"]["model"]
    assert (model["modelFormat"], model["runtime"]) == ({"name": "vLLM"}, "llm-detox-vllm")
    assert model["storage"]["path"] == f"teams/detox/{DIGEST}/artifacts"
    plain = rendered("kserve", serving="vllm", runtime="vllm-cuda-runtime")["spec"]["predictor"]["model"]
    assert (plain["runtime"], plain["storageUri"]) == ("vllm-cuda-runtime", f"{ADDRESS}/artifacts")


def test_a_connection_to_another_bucket_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The platform takes the bucket from the connection, and drops one beside the path."""
    monkeypatch.setenv("AWS_S3_BUCKET", "another")
    with pytest.raises(UsageError, match="the connection is to the bucket another"):
        wanted("openshift-ai")


def test_a_model_that_stays_protected_keeps_its_pods() -> None:
    assert wanted("openshift-ai", auth="on").digest == wanted("openshift-ai", protected=True).digest


@pytest.mark.parametrize("settings", [{"memory": "9Gi"}, {"serving": "vllm"}, {"replicas": 3}, {"auth": "on"},
                                      {"address": ADDRESS[:-1] + "0"}])
def test_the_digest_follows_all_that_is_meant(settings: Any) -> None:
    assert wanted("openshift-ai").digest == wanted("openshift-ai").digest
    assert wanted("openshift-ai", **settings).digest != wanted("openshift-ai").digest


@pytest.mark.parametrize("address", ["models/x", "s3://bucket", "s3://bucket/", "s3://BUCKET/x", "https://host/x", "",
                                     "s3://bucket/a b", "s3://bucket/x\n", "s3://bucket/x;rm -rf"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(UsageError, match="not the address of a published model"):
        PublishedAddress.parse(address)


@pytest.mark.parametrize(("platform", "namespace", "fits"), [
    ("kserve", "n" * 43, True), ("kserve", "n" * 44, False), ("openshift-ai", "n" * 53, True)])
def test_host_names_of_both_platforms_have_at_most_63_characters(platform: str, namespace: str, fits: bool) -> None:
    """KServe refuses `name-predictor-namespace` over it with `invalid domain name`."""
    if fits:
        check_names("llm-detox", namespace, platform)
    else:
        with pytest.raises(UsageError, match="host name of 64 characters"):
            check_names("llm-detox", namespace, platform)


@pytest.mark.parametrize(("name", "told"), [("m" * 47, "54 characters")])
def test_a_name_that_is_too_long_with_its_canary_is_refused(name: str, told: str) -> None:
    section = DeploySection(target="kserve", name=name, kserve=KserveSection(rollout="canary"))
    with pytest.raises(UsageError, match=told):
        plan(section, ConnectionSection(), ADDRESS, namespace="p")


VALUES = st.recursive(st.integers() | st.booleans() | st.text("ab", max_size=3),
                      lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abcd"), inner))
OBJECTS = st.dictionaries(st.sampled_from("abcd"), VALUES)


@given(first=OBJECTS, second=OBJECTS)
def test_merging_sets_all_of_the_second_and_keeps_the_rest_of_the_first(first: Any, second: Any) -> None:
    both = merged(first, second)
    assert merged(both, second) == both
    assert {key: both[key] for key in first.keys() - second.keys()} == {
        key: first[key] for key in first.keys() - second.keys()}
