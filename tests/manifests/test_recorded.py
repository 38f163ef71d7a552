"""What the recordings of the real controllers ask of the manifests, one fault that was seen each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.manifests.kustomize import MANIFESTS, load, overlay, pick, with_components

Object = dict[str, Any]


def caikit(objects: list[Object] | tuple[Object, ...]) -> Object:
    containers = pick(objects, "ServingRuntime")["spec"]["containers"]
    return next(one for one in containers if one["name"] == "transformer-container")


def port_of(container: Object, name: str) -> int:
    return next(one["containerPort"] for one in container["ports"] if one["name"] == name)


def test_the_liveness_probe_asks_what_caikit_serves() -> None:
    """`caikit_health_probe liveness` looks for a process started as `caikit.runtime`; ours was killed after 150 s."""
    container = caikit(overlay("overlays/kserve"))
    probe = container["livenessProbe"]["httpGet"]
    assert (probe["path"], port_of(container, probe["port"]), probe.get("scheme", "HTTP")) == ("/health", 8080, "HTTP")


@pytest.mark.parametrize("kind", ["readinessProbe", "livenessProbe"])
def test_with_tls_in_the_pod_the_kubelet_asks_over_tls_and_needs_no_name(kind: str, tmp_path: Path) -> None:
    container = caikit(with_components(tmp_path, "overlays/openshift-ai", ["grpc"]))
    probe = container[kind]["httpGet"]
    assert (probe["scheme"], probe["path"], port_of(container, probe["port"])) == ("HTTPS", "/health", 8080)


def test_no_service_takes_the_name_that_the_platform_gives_its_own_metrics() -> None:
    service = load(MANIFESTS / "components/monitoring/service.yaml")
    assert service["metadata"]["name"] != f"{service['spec']['selector']['serving.kserve.io/inferenceservice']}-metrics"


def test_a_canary_of_kserve_has_a_name_and_leaves_the_scaling_alone(tmp_path: Path) -> None:
    canary = pick(with_components(tmp_path, "overlays/kserve/model", ["canary"]), "InferenceService")["spec"]["canary"]
    assert canary[0]["predictor"]["name"]
    assert "maxReplicas" not in canary[0]["predictor"]


def test_the_dashboard_knows_the_vllm_runtime_and_what_it_is() -> None:
    runtime = load(MANIFESTS / "components/vllm/servingruntime.yaml")
    assert runtime["metadata"]["labels"]["opendatahub.io/dashboard"] == "true"
    assert runtime["spec"]["annotations"]["opendatahub.io/kserve-runtime"] == "vllm"


def test_plain_kserve_publishes_no_model_through_an_open_ingress() -> None:
    service = pick(overlay("overlays/kserve/model"), "InferenceService")
    assert service["metadata"]["labels"]["networking.kserve.io/visibility"] == "cluster-local"


def test_plain_kserve_runs_images_whose_user_is_a_name() -> None:
    security = pick(overlay("overlays/kserve/model"), "InferenceService")["spec"]["predictor"]["securityContext"]
    assert security["runAsNonRoot"] is True
    assert isinstance(security["runAsUser"], int)
    assert security["runAsUser"] > 0


def test_the_engine_has_a_home_under_any_user() -> None:
    engine = pick(overlay("overlays/openshift-ai"), "ServingRuntime")["spec"]["containers"][0]
    assert {"name": "HOME", "value": "/tmp"} in engine["env"]  # noqa: S108 - a volume of the pod's own


def test_the_guarded_model_is_asked_where_its_service_listens() -> None:
    """The Service that KServe makes has port 80; there is no 8080."""
    graph = load(MANIFESTS / "samples/guard/inferencegraph.yaml")
    model = graph["spec"]["nodes"]["root"]["steps"][0]["serviceUrl"]
    assert model.startswith("http://llm-detox-predictor/")


def test_pipelines_of_kubeflow_reach_the_model_that_they_deployed() -> None:
    policy = pick(overlay("overlays/kserve"), "NetworkPolicy")
    sources = [one for rule in policy["spec"]["ingress"] if any(port["port"] == 8085 for port in rule["ports"])
               for one in rule["from"]]
    assert any(one.get("namespaceSelector", {}).get("matchLabels", {}).get("kubernetes.io/metadata.name") == "kubeflow"
               for one in sources)
