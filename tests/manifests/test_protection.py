"""Protected means protected on each port: who may reach which port of which pods."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_detox.serve.kserve.render import PROTECTED
from tests.manifests.kustomize import overlay, pick, with_components
from tests.manifests.objects import PODS, open_ports

PLATFORMS = ("overlays/kserve", "overlays/openshift-ai")


@pytest.mark.parametrize("name", PLATFORMS)
def test_of_a_protected_model_only_the_port_that_asks_for_a_token_is_open(name: str) -> None:
    """The Service of a protected model still named 8085, where gRPC answered anybody."""
    assert open_ports(overlay(name), {**PODS, PROTECTED: "true"}) == {8443}
    assert open_ports(overlay(name), PODS) == {8080, 8085, 8443}
    assert open_ports(overlay(name), {**PODS, PROTECTED: "false"}) == {8080, 8085, 8443}


@pytest.mark.parametrize("name", PLATFORMS)
def test_nobody_reads_the_api_of_a_protected_model_as_metrics(name: str) -> None:
    assert open_ports(overlay(name), {**PODS, PROTECTED: "true"}, monitoring=True) == {3000, 8086}
    assert open_ports(overlay(name), PODS, monitoring=True) == {3000, 8080, 8086}


@pytest.mark.parametrize("labels", [PODS, {**PODS, PROTECTED: "true"}], ids=["open", "protected"])
def test_the_engines_own_port_is_closed_to_other_pods(labels: dict[str, str]) -> None:
    for monitoring in (False, True):
        assert 8033 not in open_ports(overlay("overlays/openshift-ai"), labels, monitoring)


@pytest.mark.parametrize("component", ["protect", "expose"])
def test_a_model_is_protected_by_the_platform_and_behind_it(component: str, tmp_path: Path) -> None:
    service = pick(with_components(tmp_path, "overlays/openshift-ai/model", [component]), "InferenceService")
    metadata = service["metadata"]
    assert metadata["annotations"]["security.opendatahub.io/enable-auth"] == "true"
    assert service["spec"]["predictor"]["labels"] == {PROTECTED: "true"}
    exposed = metadata["labels"].get("networking.kserve.io/visibility") == "exposed"
    assert exposed == (component == "expose")


@pytest.mark.parametrize("name", PLATFORMS)
def test_caikit_learns_from_its_pod_that_it_is_protected(name: str) -> None:
    """From our label, and from the annotation of whoever protects the model in the dashboard."""
    caikit = pick(overlay(name), "ServingRuntime")["spec"]["containers"][1]
    paths = {one["name"]: one["valueFrom"]["fieldRef"]["fieldPath"] for one in caikit["env"] if "valueFrom" in one}
    assert paths["CAIKIT_PROTECTED"] == f"metadata.labels['{PROTECTED}']"
    assert paths["CAIKIT_ENABLE_AUTH"] == "metadata.annotations['security.opendatahub.io/enable-auth']"


def test_grpc_from_outside_takes_only_clients_with_a_certificate(tmp_path: Path) -> None:
    objects = with_components(tmp_path, "overlays/openshift-ai", ["grpc"])
    route, service = pick(objects, "Route"), pick(objects, "Service")
    assert route["spec"]["tls"]["termination"] == "passthrough", "edge Routes do not carry gRPC"
    [port] = service["spec"]["ports"]
    assert route["spec"]["to"]["name"] == service["metadata"]["name"]
    assert route["spec"]["port"]["targetPort"] == port["name"]
    caikit = pick(objects, "ServingRuntime")["spec"]["containers"][1]
    given = {one["name"]: one.get("value") for one in caikit["env"]}
    assert given["CAIKIT_MTLS_PORT"] == str(port["targetPort"])
    mounted = {one["mountPath"]: one["name"] for one in caikit["volumeMounts"]}
    assert mounted[str(Path(str(given["CAIKIT_MTLS_CLIENT_CA"])).parent)] == "caikit-clients"
    assert mounted[str(Path(str(given["CAIKIT_MTLS_KEY"])).parent)] == "caikit-tls"
    volumes = {one["name"]: one for one in pick(objects, "ServingRuntime")["spec"]["volumes"]}
    assert volumes["caikit-tls"]["secret"]["secretName"] == service["metadata"]["annotations"][
        "service.beta.openshift.io/serving-cert-secret-name"]
    assert "optional" not in volumes["caikit-clients"]["configMap"], "without the authority nothing starts"
    assert open_ports(objects, {**PODS, PROTECTED: "true"}) == {8443, port["targetPort"]}
