"""What the parts of a serving pod say of each other agrees: ports, probes, paths, names, accounts and Secrets."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from serving.engine.settings import Settings, parse
from tests.conftest import REPOSITORY
from tests.manifests.kustomize import MANIFESTS, Object, connection, load, overlay, pick, with_components
from tests.manifests.objects import PODS, open_ports

NAME_LABEL = next(iter(PODS))  # with it KServe marks its pods, see the recordings
MOUNT = "/mnt/models"  # where KServe puts the model
PLATFORMS = ("overlays/kserve", "overlays/openshift-ai")
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")


def default(option: str) -> int:
    """The port that serving/caikit/runtime.py takes where nobody gives one."""
    found = re.search(rf'option\("{option}", (\d+)', (REPOSITORY / "serving/caikit/runtime.py").read_text("utf-8"))
    assert found, option
    return int(found[1])


def variables(container: Object) -> dict[str, str]:
    return {one["name"]: one["value"] for one in container["env"] if "value" in one}


def engine_settings(container: Object) -> Settings:
    """As the engine reads its arguments and its environment; TGIS has the same names."""
    return parse(container["args"], variables(container))


@pytest.fixture(scope="module", params=[(), ("engine",)], ids=["tgis", "engine"])
def caikit_runtime(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Object:
    objects = with_components(tmp_path_factory.mktemp("wiring"), "overlays/openshift-ai", request.param)
    return pick(objects, "ServingRuntime")["spec"]


@pytest.fixture(scope="module")
def vllm_runtime() -> Object:
    return load(MANIFESTS / "components/vllm/servingruntime.yaml")["spec"]


def test_the_engine_reads_the_folder_that_is_mounted(caikit_runtime: Object) -> None:
    model = Path(engine_settings(caikit_runtime["containers"][0]).model_name)
    assert model == Path(MOUNT) / "artifacts"
    assert variables(caikit_runtime["containers"][1])["CAIKIT_MODEL_DIR"] == MOUNT


@pytest.mark.parametrize("kind", PROBES)
def test_the_engine_is_probed_where_it_listens(caikit_runtime: Object, kind: str) -> None:
    engine = caikit_runtime["containers"][0]
    settings = engine_settings(engine)
    assert settings.tls_cert_path is None
    assert engine[kind]["httpGet"] == {"path": "/health", "port": settings.port}


def test_caikit_asks_the_engine_where_it_listens(caikit_runtime: Object) -> None:
    engine, caikit = caikit_runtime["containers"]
    assert variables(caikit)["CAIKIT_ENGINE"] == f"localhost:{engine_settings(engine).grpc_port}"


def test_caikits_ports_are_those_that_it_listens_on(caikit_runtime: Object) -> None:
    caikit = caikit_runtime["containers"][1]
    assert not {"CAIKIT_HTTP_PORT", "CAIKIT_GRPC_PORT"} & set(variables(caikit))
    assert {one["name"]: one["containerPort"] for one in caikit["ports"]} == {
        "http": default("http-port"), "h2c": default("grpc-port")}


def test_the_model_id_is_the_name_of_the_model(caikit_runtime: Object, vllm_runtime: Object) -> None:
    [source] = [one["valueFrom"] for one in caikit_runtime["containers"][1]["env"] if one["name"] == "CAIKIT_MODEL_ID"]
    assert source == {"fieldRef": {"fieldPath": f"metadata.labels['{NAME_LABEL}']"}}
    assert "--served-model-name={{.Name}}" in vllm_runtime["containers"][0]["args"]


def test_the_platform_scrapes_the_engine_where_it_listens(caikit_runtime: Object, vllm_runtime: Object) -> None:
    settings = engine_settings(caikit_runtime["containers"][0])
    assert caikit_runtime["annotations"]["prometheus.io/port"] == str(settings.port)
    assert f"--port={vllm_runtime['annotations']['prometheus.io/port']}" in vllm_runtime["containers"][0]["args"]
    for runtime in (caikit_runtime, vllm_runtime):
        assert runtime["annotations"]["prometheus.io/path"] == "/metrics"


def test_vllm_is_probed_and_reached_where_it_listens(vllm_runtime: Object) -> None:
    [container] = vllm_runtime["containers"]
    [port] = container["ports"]
    assert f"--port={port['containerPort']}" in container["args"]
    for kind in PROBES:
        assert container[kind]["httpGet"] == {"path": "/health", "port": port["containerPort"]}, kind


def test_the_container_that_gets_the_gpu_is_the_one_that_computes(caikit_runtime: Object, vllm_runtime: Object) -> None:
    """KServe puts the model's resources into `kserve-container`."""
    assert caikit_runtime["containers"][0]["name"] == "kserve-container"
    assert vllm_runtime["containers"][0]["name"] == "kserve-container"


def test_every_mount_has_its_volume(caikit_runtime: Object, vllm_runtime: Object) -> None:
    for runtime in (caikit_runtime, vllm_runtime):
        volumes = {one["name"] for one in runtime["volumes"]}
        mounts = {one["name"] for container in runtime["containers"] for one in container["volumeMounts"]}
        assert mounts == volumes


@pytest.mark.parametrize("platform", PLATFORMS)
def test_the_model_runs_under_the_account_that_may_read_the_connection(platform: str, tmp_path: Path) -> None:
    model = pick(overlay(f"{platform}/model"), "InferenceService")
    account = next(one for one in overlay(platform) if one["kind"] == "ServiceAccount"
                   and one["metadata"]["name"] == model["spec"]["predictor"]["serviceAccountName"])
    assert account["secrets"] == [{"name": pick(connection(tmp_path), "Secret")["metadata"]["name"]}]
    assert account["automountServiceAccountToken"] is False
    assert model["spec"]["predictor"]["automountServiceAccountToken"] is False
    assert model["spec"]["predictor"]["securityContext"]["runAsNonRoot"] is True


@pytest.mark.parametrize("platform", PLATFORMS)
def test_a_model_names_a_runtime_and_a_format_that_are_there(platform: str) -> None:
    model = pick(overlay(f"{platform}/model"), "InferenceService")["spec"]["predictor"]["model"]
    runtime = pick(overlay(platform), "ServingRuntime")
    assert model["runtime"] == runtime["metadata"]["name"]
    assert model["modelFormat"]["name"] in {one["name"] for one in runtime["spec"]["supportedModelFormats"]}


def test_the_pods_get_out_to_the_stores_that_the_docs_name() -> None:
    example = (MANIFESTS / "connection/connection.env.example").read_text("utf-8")
    endpoint = urlsplit(re.findall(r"^AWS_S3_ENDPOINT=(.*)$", example, re.M)[0])
    policy = next(one for one in overlay("overlays/kserve") if one["kind"] == "NetworkPolicy"
                  and "Egress" in one["spec"]["policyTypes"])
    let_out = {port["port"] for rule in policy["spec"]["egress"] for port in rule["ports"]}
    assert {endpoint.port, 443, 9000, 6443, 53} <= let_out


@pytest.mark.parametrize("platform", PLATFORMS)
def test_prometheus_finds_the_metrics_of_caikit_and_of_the_engine(platform: str, tmp_path: Path) -> None:
    objects = with_components(tmp_path, platform, ["monitoring"])
    service, monitor = pick(objects, "Service"), pick(objects, "ServiceMonitor")
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert set(service["spec"]["selector"]) == {NAME_LABEL}
    ports = {one["name"]: one["targetPort"] for one in service["spec"]["ports"]}
    engine = engine_settings(pick(objects, "ServingRuntime")["spec"]["containers"][0])
    assert sorted(ports.values()) == sorted([default("metrics-port"), engine.port])
    assert {one["port"] for one in monitor["spec"]["endpoints"]} == set(ports)
    assert set(ports.values()) <= open_ports(objects, PODS, monitoring=True)
