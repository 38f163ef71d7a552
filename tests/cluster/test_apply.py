"""What `kubectl apply -k` sends is accepted by a real API server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cluster.server import ApiServer
from tests.manifests.kustomize import COMPONENTS, MANIFESTS, OVERLAYS, connection, with_components

# OpenShift and the Prometheus operator bring these; the strict schemas of tests/manifests check their fields.
ELSEWHERE = [("template.openshift.io", "v1", "Template", "templates"), ("route.openshift.io", "v1", "Route", "routes"),
             ("monitoring.coreos.com", "v1", "ServiceMonitor", "servicemonitors")]
# Both replace the engine, so a deployment takes one of them.
TOGETHER = [name for name in COMPONENTS if name not in ("vllm", "networkpolicy")]


@pytest.fixture(scope="module")
def cluster(api_server: ApiServer) -> ApiServer:
    anything = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    for group, version, kind, plural in ELSEWHERE:
        api_server.kubectl("apply", "--validate=false", "-f", "-", text=json.dumps({
            "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {"name": f"{plural}.{group}"},
            "spec": {"group": group, "scope": "Namespaced", "names": {"kind": kind, "plural": plural},
                     "versions": [{"name": version, "served": True, "storage": True,
                                   "schema": {"openAPIV3Schema": anything}}]}}))
    api_server.wait_for_kinds()
    for name in ("llm-detox", "redhat-ods-applications"):
        api_server.kubectl("create", "namespace", name)
    return api_server


@pytest.mark.parametrize("name", OVERLAYS)
def test_every_overlay_is_accepted_and_a_second_time_changes_nothing(cluster: ApiServer, name: str) -> None:
    cluster.kubectl("apply", "--validate=false", "-k", str(MANIFESTS / name))
    again = cluster.kubectl("apply", "--validate=false", "-k", str(MANIFESTS / name)).splitlines()
    assert all(line.endswith("unchanged") for line in again), again


@pytest.mark.parametrize("name", OVERLAYS[:4])
def test_every_overlay_with_its_components_is_accepted(cluster: ApiServer, name: str, tmp_path: Path) -> None:
    objects = with_components(tmp_path, name, TOGETHER)
    cluster.kubectl("apply", "--validate=false", "-f", "-",
                    text=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))


def test_vllm_and_the_connection_are_accepted(cluster: ApiServer, tmp_path: Path) -> None:
    objects = [*with_components(tmp_path / "vllm", "overlays/kserve", ["vllm"]), *connection(tmp_path)]
    cluster.kubectl("apply", "--validate=false", "-f", "-",
                    text=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))
