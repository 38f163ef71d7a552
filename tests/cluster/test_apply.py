"""What `kubectl apply -k` sends is accepted by a real API server, alone and with every documented set of components."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.cluster.server import ApiServer
from tests.conftest import SHARED
from tests.docs.commands import ROOT, commands
from tests.manifests import kustomize
from tests.manifests.kustomize import MANIFESTS, OVERLAYS, connection, copied, documented, kubectl

# The one kind of OpenShift that is applied here and whose definition is not at hand; the strict schemas of
# tests/manifests check its fields.
TEMPLATE = {"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {"name": "templates.template.openshift.io"},
            "spec": {"group": "template.openshift.io", "scope": "Namespaced",
                     "names": {"kind": "Template", "plural": "templates"},
                     "versions": [{"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": {
                         "type": "object", "x-kubernetes-preserve-unknown-fields": True}}}]}}
STRICTLY = ("apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", "-")
PAGES = ("docs/kserve.md", "docs/openshift-ai.md")
# These need running pods.
NEEDS_MORE = re.compile(r"kubectl (port-forward|wait) ")


@pytest.fixture(scope="module")
def cluster(api_server: ApiServer) -> ApiServer:
    api_server.kubectl("apply", "--validate=false", "-f", "-", text=json.dumps(TEMPLATE))
    api_server.wait_for_kinds()
    for name in ("llm-detox", "redhat-ods-applications"):
        api_server.kubectl("apply", "-f", "-", text=json.dumps(
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}))
    return api_server


@pytest.mark.parametrize("name", OVERLAYS)
def test_every_overlay_is_accepted_and_a_second_time_changes_nothing(cluster: ApiServer, name: str) -> None:
    cluster.kubectl("apply", "--validate=strict", "-k", str(MANIFESTS / name))
    again = cluster.kubectl("apply", "--validate=strict", "-k", str(MANIFESTS / name)).splitlines()
    assert all(line.endswith("unchanged") for line in again), again


@pytest.mark.parametrize("base", OVERLAYS)
def test_every_documented_set_of_components_is_accepted_strictly(
        cluster: ApiServer, base: str, tmp_path: Path) -> None:
    """Single ones, pairs and all together, each different object once; a field that does not exist is an error.

    Larger sets: `test_every_set_of_components_passes_on_every_overlay`, against the schemas.
    """
    found = kustomize.every_combination(tmp_path, base, at_most=2)
    assert len(found) > len(documented().get(base, ())), "the components bring or change something"
    cluster.kubectl(*STRICTLY, text="\n---\n".join(found))


@pytest.mark.parametrize("components", [[], ["custom-ca"]], ids=["plain", "custom-ca"])
def test_the_connection_is_accepted_strictly(cluster: ApiServer, components: list[str], tmp_path: Path) -> None:
    cluster.kubectl(*STRICTLY, text=json.dumps(
        {"apiVersion": "v1", "kind": "List", "items": connection(tmp_path, components)}))


def test_a_field_that_does_not_exist_is_noticed(cluster: ApiServer) -> None:
    runtime = kustomize.load(MANIFESTS / "components/vllm/servingruntime.yaml")
    runtime["metadata"]["namespace"] = "llm-detox"
    cluster.kubectl(*STRICTLY, text=json.dumps(runtime))
    runtime["spec"]["containers"][0]["volumeMount"] = []
    with pytest.raises(AssertionError, match="volumeMount"):
        cluster.kubectl(*STRICTLY, text=json.dumps(runtime))


@pytest.mark.skipif(not (SHARED / "kserve").is_dir(), reason=f"no recordings of KServe here ({SHARED / 'kserve'})")
@pytest.mark.parametrize("level", ["baseline", "restricted"])
def test_a_namespace_that_enforces_restricted_admits_no_serving_pod_and_that_of_the_sample_does(
        cluster: ApiServer, level: str) -> None:
    """The containers that KServe adds say nothing about their rights."""
    namespace = kustomize.load(MANIFESTS / "samples/namespace.yaml")
    namespace["metadata"]["name"] = f"serving-{level}"
    enforced = namespace["metadata"]["labels"]
    assert enforced["pod-security.kubernetes.io/enforce"] == "baseline"
    enforced["pod-security.kubernetes.io/enforce"] = level
    cluster.kubectl("apply", "-f", "-", text=json.dumps(namespace))
    create = ("create", "--dry-run=server", "-n", f"serving-{level}", "-f", "-")
    if level == "baseline":
        cluster.kubectl(*create, text=recorded_pod())
    else:
        with pytest.raises(AssertionError, match=r"violates PodSecurity.*storage-initializer"):
            cluster.kubectl(*create, text=recorded_pod())


def recorded_pod() -> str:
    """The pod that KServe made of our manifests, with the containers that it added."""
    made = (SHARED / "kserve/opendatahub-3.5/auth/made.yaml").read_text("utf-8")
    [pod] = [one for one in yaml.safe_load_all(made) if one and one["kind"] == "Pod"]
    for name in ("priority", "preemptionPolicy"):  # the admission of this server sets them
        pod["spec"].pop(name)
    return json.dumps({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "recorded"}, "spec": pod["spec"]})


@pytest.mark.parametrize("page", PAGES)
def test_the_kubectl_commands_of_a_page_work_in_their_order(cluster: ApiServer, page: str, tmp_path: Path) -> None:
    copied(tmp_path)
    (tmp_path / "clients-ca.pem").write_text("PEM", "utf-8")
    run = [one for one in commands(ROOT / page) if one.words[0] == "kubectl" and not NEEDS_MORE.match(one.text)]
    assert len(run) >= 4
    for command in run:
        done = subprocess.run([kubectl(), "--kubeconfig", str(cluster.kubeconfig), *command.words[1:]], cwd=tmp_path,
                              capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        assert "rning" not in done.stderr, f"{command}: {done.stderr}"


@pytest.mark.parametrize("sample", ["guard", "detector", "guardrails"])
def test_a_sample_is_accepted_strictly(cluster: ApiServer, sample: str) -> None:
    cluster.kubectl(*STRICTLY, text=kustomize.rendered(MANIFESTS / "samples" / sample))
