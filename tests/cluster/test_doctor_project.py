"""The doctor in projects that lack one thing each, against a real API server."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest

from llm_detox.cluster.api import Cluster
from llm_detox.doctor.cluster import examine_cluster
from llm_detox.doctor.finding import Finding
from llm_detox.recipe.cluster import ConnectionSection
from llm_detox.recipe.deploy import DeploySection
from tests.cluster.server import ApiServer, moved
from tests.manifests.kustomize import overlay

Object = dict[str, Any]
_numbers = itertools.count(1)
KEYS = dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_S3_ENDPOINT", "AWS_DEFAULT_REGION",
                      "AWS_S3_BUCKET"), "eA==")
CONNECTION = {f"opendatahub.io/connection-type{end}": "s3" for end in ("", "-protocol", "-ref")}


class Project:
    """A namespace with the overlay applied, and nothing else."""

    def __init__(self, server: ApiServer, platform: str) -> None:
        from kubernetes import client

        self.server, self.platform, self.name = server, platform, f"doctor-{next(_numbers)}"
        self.core = client.CoreV1Api(server.client())
        self.core.create_namespace({"metadata": {"name": self.name}})
        objects = [one for one in moved(overlay(f"overlays/{platform}"), self.name) if one["kind"] != "Template"]
        server.kubectl("apply", "-f", "-", text=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))

    def secret(self, name: str = "llm-detox-s3", *, keys: Object = KEYS, labels: Object | None = None,
               annotations: Object | None = None) -> None:
        self.core.create_namespaced_secret(self.name, {
            "metadata": {"name": name, "labels": labels, "annotations": annotations}, "data": keys})

    def config_map(self, name: str, *keys: str) -> None:
        self.core.create_namespaced_config_map(self.name, {"metadata": {"name": name},
                                                           "data": dict.fromkeys(keys, "PEM")})

    def look(self, *, ca: str | None = None, **kserve: Any) -> dict[str, Finding]:
        settings = DeploySection.model_validate({
            "target": "kserve", "kserve": {"platform": self.platform, "gpus": 0, **kserve}})
        cluster = Cluster(self.server.client(), self.name, away_seconds=30)
        return {one.check: one for one in examine_cluster(settings, ConnectionSection(ca_config_map=ca), cluster)}


@pytest.fixture
def plain(api_server: ApiServer) -> Project:
    return Project(api_server, "kserve")


@pytest.fixture
def openshift(api_server: ApiServer) -> Project:
    return Project(api_server, "openshift-ai")


def test_a_runtime_of_another_format_is_found_before_kserve_refuses_it(plain: Project) -> None:
    found = plain.look(serving="vllm", runtime="llm-detox-caikit-tgis")["runtime"]
    assert found.state == "missing"
    assert found.text == "the runtime llm-detox-caikit-tgis does not take the format vLLM, but caikit"
    assert plain.look()["runtime"].text == "llm-detox-caikit-tgis for caikit-tgis"


def test_a_runtime_that_is_nowhere_is_named_with_what_brings_it(plain: Project) -> None:
    found = plain.look(serving="vllm")["runtime"]
    assert (found.state, found.text) == ("missing", "there is no ServingRuntime llm-detox-vllm")
    assert "component vllm" in str(found.remedy)


def test_a_runtime_of_the_whole_cluster_counts(api_server: ApiServer, plain: Project) -> None:
    from kubernetes import client

    runtimes = client.CustomObjectsApi(api_server.client())
    kind = ("serving.kserve.io", "v1alpha1", "clusterservingruntimes")
    runtimes.create_cluster_custom_object(*kind, {
        "apiVersion": "serving.kserve.io/v1alpha1", "kind": "ClusterServingRuntime", "metadata": {"name": plain.name},
        "spec": {"supportedModelFormats": [{"name": "vLLM"}], "containers": [{"name": "kserve-container"}]}})
    try:
        assert plain.look(serving="vllm", runtime=plain.name)["runtime"].state == "ok"
    finally:
        runtimes.delete_cluster_custom_object(*kind, plain.name)


def test_a_connection_without_its_labels_is_none_for_the_platform(openshift: Project) -> None:
    openshift.secret(labels={"opendatahub.io/dashboard": "true"})
    found = openshift.look()["secrets"]
    assert found.state == "missing"
    assert "the annotation opendatahub.io/connection-type" in found.text


@pytest.mark.parametrize(("taken_up", "state"), [(False, "missing"), (True, "ok")])
def test_a_connection_counts_when_the_platform_has_taken_it_up(openshift: Project, taken_up: bool, state: str) -> None:
    openshift.secret(labels={"opendatahub.io/dashboard": "true"}, annotations=CONNECTION)
    if taken_up:
        openshift.secret("storage-config", keys={"llm-detox-s3": "e30="})
    found = openshift.look()
    assert found["secrets"].state == "ok"
    assert found["storage-config"].state == state


def test_a_secret_that_lacks_a_key_or_the_endpoint_is_said(plain: Project) -> None:
    plain.secret(keys={"AWS_ACCESS_KEY_ID": "eA=="})
    found = plain.look()["secrets"]
    assert "the key AWS_SECRET_ACCESS_KEY" in found.text
    assert "the annotation serving.kserve.io/s3-endpoint" in found.text


def test_an_account_that_does_not_name_the_secret_is_said(plain: Project) -> None:
    plain.core.replace_namespaced_service_account("llm-detox-model", plain.name, {
        "metadata": {"name": "llm-detox-model"}, "secrets": [{"name": "another"}]})
    found = plain.look()["serviceaccounts"]
    assert found.text == "llm-detox-model does not name the Secret llm-detox-s3"


def test_pull_secrets_that_are_not_there_are_said(plain: Project) -> None:
    plain.core.patch_namespaced_service_account("llm-detox-model", plain.name,
                                                {"imagePullSecrets": [{"name": "registry"}]})
    found = plain.look()["serviceaccounts"]
    assert "Secrets that are not there: registry" in found.text


@pytest.mark.parametrize(("keys", "words"), [
    (("cabundle.crt",), "no key ca-bundle.crt"), (("ca-bundle.crt",), "no key cabundle.crt"),
    (("ca-bundle.crt", "cabundle.crt"), "")])
def test_an_own_authority_has_the_keys_of_all_its_readers(plain: Project, keys: tuple[str, ...], words: str) -> None:
    plain.config_map("own-ca", *keys)
    plain.secret(annotations={"serving.kserve.io/s3-endpoint": "s3", "serving.kserve.io/s3-cabundle-configmap":
                              "own-ca"})
    found = plain.look(ca="own-ca")["authority"]
    assert (found.state == "ok") == (not words)
    assert words in found.text


def test_on_openshift_ai_the_storage_initializer_trusts_only_the_platforms_authorities(openshift: Project) -> None:
    openshift.config_map("own-ca", "ca-bundle.crt")
    found = openshift.look(ca="own-ca")["authority"]
    assert found.state == "missing"
    assert "odh-kserve-custom-ca-bundle" in found.text
    openshift.config_map("odh-kserve-custom-ca-bundle", "cabundle.crt")
    assert openshift.look(ca="own-ca")["authority"].state == "ok"


def test_a_namespace_that_admits_no_pod_of_kserve_is_said_before_one_is_refused(plain: Project) -> None:
    assert plain.look()["pod security"].state == "ok"
    plain.core.patch_namespace(plain.name, {"metadata": {"labels": {
        "pod-security.kubernetes.io/enforce": "restricted"}}})
    found = plain.look()["pod security"]
    assert found.state == "missing"
    assert "enforce=baseline" in str(found.remedy)


def test_taints_labels_and_gpus_of_the_nodes_are_compared_with_the_pod(plain: Project) -> None:
    core, name = plain.core, f"gpu-{plain.name}"
    core.create_node({"metadata": {"name": name, "labels": {"gpu": "h100"}}})  # not ready until a kubelet says so
    core.patch_node_status(name, {"status": {"allocatable": {"nvidia.com/gpu": "2"}}})
    try:
        assert "no node has 1 nvidia.com/gpu that is ready" in plain.look(gpus=1)["GPUs"].text
        core.patch_node(name, {"spec": {"taints": [{"key": "team", "value": "a", "effect": "NoSchedule"}]}})
        assert "taints that the pod does not tolerate: team=a:NoSchedule" in plain.look(gpus=1)["GPUs"].text
        assert plain.look(gpus=1, tolerations=["team=a", "nvidia.com/gpu"])["GPUs"].state == "ok"
        assert plain.look(gpus=1, tolerations=["team=b"])["GPUs"].state == "missing"
        assert "has the labels gpu=a100" in plain.look(gpus=1, node_selector={"gpu": "a100"})["GPUs"].text
        assert "the most is 2" in plain.look(gpus=3)["GPUs"].text
    finally:
        core.delete_node(name)


def test_a_pod_that_waits_for_its_image_is_said(plain: Project) -> None:
    plain.core.create_namespaced_pod(plain.name, {
        "metadata": {"name": "old"}, "spec": {"containers": [{"name": "main", "image": "absent:1"}]}})
    plain.core.patch_namespaced_pod_status("old", plain.name, {"status": {"containerStatuses": [{
        "name": "main", "image": "absent:1", "imageID": "", "ready": False, "restartCount": 0,
        "state": {"waiting": {"reason": "ImagePullBackOff", "message": "manifest unknown"}}}]}})
    found = plain.look()["images"]
    assert (found.state, found.text) == ("missing", "old, main: manifest unknown")


def test_kserve_is_told_with_its_version_and_mode(api_server: ApiServer, plain: Project) -> None:
    from kubernetes import client

    assert plain.look()["KServe"].state == "unknown"
    plain.core.create_namespace({"metadata": {"name": "opendatahub"}})
    containers = [{"name": "manager", "image": "example.com/odh/kserve-controller:odh-v3.5"}]
    labels = {"app": "kserve"}
    apps = client.AppsV1Api(api_server.client())
    apps.create_namespaced_deployment("opendatahub", {
        "metadata": {"name": "kserve-controller-manager"},
        "spec": {"selector": {"matchLabels": labels}, "replicas": 0,
                 "template": {"metadata": {"labels": labels}, "spec": {"containers": containers}}}})
    plain.core.create_namespaced_config_map("opendatahub", {
        "metadata": {"name": "inferenceservice-config"},
        "data": {"deploy": json.dumps({"defaultDeploymentMode": "Knative"})}})
    try:
        assert plain.look()["KServe"].text == "odh-v3.5 in opendatahub; models of others run in the mode Knative"
    finally:
        apps.delete_namespaced_deployment("kserve-controller-manager", "opendatahub")
