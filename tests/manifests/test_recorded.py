"""What the recordings of the real controllers ask of the manifests, one fault that was seen each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.manifests.kustomize import (
    MANIFESTS,
    build,
    copied,
    load,
    overlay,
    pick,
    with_components,
    write_overlay,
)

Object = dict[str, Any]


def caikit(objects: list[Object] | tuple[Object, ...]) -> Object:
    containers = pick(objects, "ServingRuntime")["spec"]["containers"]
    return next(one for one in containers if one["name"] == "transformer-container")


@pytest.mark.parametrize("kind", ["startupProbe", "readinessProbe", "livenessProbe"])
def test_the_probes_ask_what_caikit_serves(kind: str) -> None:
    """`caikit_health_probe liveness` looks for a process started as `caikit.runtime`; ours was killed after 150 s."""
    container = caikit(overlay("overlays/kserve"))
    assert container[kind]["exec"]["command"] == ["python", "-m", "caikit_health_probe", "readiness"]
    environment = {one["name"]: one.get("value") for one in container["env"]}
    for name in ("RUNTIME_HTTP_PROBE_TIMEOUT", "RUNTIME_GRPC_PROBE_TIMEOUT"):
        seconds = float(environment[name] or 0)
        assert 1 <= seconds < container[kind]["timeoutSeconds"], "Caikit's own hundredth of a second kills a busy one"


def test_a_large_model_is_compared_before_the_liveness_probe_counts() -> None:
    probe = caikit(overlay("overlays/kserve"))["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] >= 1800


def test_no_service_takes_the_name_that_the_platform_gives_its_own_metrics() -> None:
    service = load(MANIFESTS / "components/monitoring/service.yaml")
    assert service["metadata"]["name"] != f"{service['spec']['selector']['serving.kserve.io/inferenceservice']}-metrics"


def test_a_canary_of_kserve_has_a_name_and_leaves_the_scaling_alone(tmp_path: Path) -> None:
    """`canary[0] predictor.name is required`, said the validator."""
    canary = pick(with_components(tmp_path, "overlays/kserve/model", ["canary"]), "InferenceService")["spec"]["canary"]
    assert canary[0]["predictor"]["name"]
    assert "maxReplicas" not in canary[0]["predictor"]


@pytest.mark.parametrize("components", [[], ["vllm-model", "expose"]], ids=["caikit", "vllm"])
def test_a_canary_is_the_model_but_for_its_version(components: list[str], tmp_path: Path) -> None:
    spec = pick(with_components(tmp_path, "overlays/openshift-ai/model", ["canary", *components]),
                "InferenceService")["spec"]
    main, candidate = spec["predictor"], spec["canary"][0]["predictor"]
    for name in ("serviceAccountName", "automountServiceAccountToken", "securityContext", "tolerations"):
        assert candidate[name] == main[name], name
    for name in ("modelFormat", "runtime", "resources"):
        assert candidate["model"][name] == main["model"][name], name


def test_a_canary_on_plain_kserve_runs_images_whose_user_is_a_name(tmp_path: Path) -> None:
    canary = pick(with_components(tmp_path, "overlays/kserve/model", ["canary"]), "InferenceService")["spec"]["canary"]
    assert canary[0]["predictor"]["securityContext"]["runAsUser"] > 0


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


@pytest.mark.parametrize("components", [[], ["engine"], ["vllm"]], ids=["tgis", "engine", "vllm"])
def test_every_container_has_a_home_and_a_name_under_any_user(components: list[str], tmp_path: Path) -> None:
    """A user id without an entry in /etc/passwd: the home would be `/`, and torch's `getpass.getuser` fails."""
    objects = with_components(tmp_path, "overlays/openshift-ai", components)
    for runtime in (one for one in objects if one["kind"] == "ServingRuntime"):
        for container in runtime["spec"]["containers"]:
            assert {"name": "HOME", "value": "/tmp"} in container["env"], container["name"]  # noqa: S108 - a volume
            assert any(one["name"] == "USER" for one in container["env"]), container["name"]


def test_the_guarded_model_is_asked_where_its_service_listens() -> None:
    """The Service that KServe makes has port 80; there is no 8080."""
    graph = load(MANIFESTS / "samples/guard/inferencegraph.yaml")
    model = graph["spec"]["nodes"]["root"]["steps"][0]["serviceUrl"]
    assert model.startswith("http://llm-detox-predictor/")


def test_pipelines_of_kubeflow_reach_the_model_that_they_deployed() -> None:
    sources = [one for policy in overlay("overlays/kserve") if policy["kind"] == "NetworkPolicy"
               for rule in policy["spec"]["ingress"] if any(port["port"] == 8085 for port in rule["ports"])
               for one in rule["from"]]
    assert any(one.get("namespaceSelector", {}).get("matchLabels", {}).get("kubernetes.io/metadata.name") == "kubeflow"
               for one in sources)


def test_the_deploy_step_may_look_at_the_deployments_that_kserve_makes() -> None:
    """The InferenceService's `observedGeneration` is the Deployment's; only the Deployment says what is rolled out."""
    rules = pick(overlay("overlays/kserve"), "Role")["rules"]
    [verbs] = [rule["verbs"] for rule in rules if "deployments" in rule["resources"]]
    assert verbs == ["get"]


def test_a_deployment_does_not_say_whether_a_model_is_protected() -> None:
    """`enable-auth: "false"` in it took the protection off a model that the dashboard had protected."""
    service = pick(overlay("overlays/openshift-ai/model"), "InferenceService")
    assert "security.opendatahub.io/enable-auth" not in service["metadata"]["annotations"]


@pytest.mark.parametrize("platform", ["kserve", "openshift-ai"])
def test_the_right_to_look_at_cluster_runtimes_is_one_verb_and_one_binding_a_project(
        platform: str, tmp_path: Path) -> None:
    objects = with_components(tmp_path, f"overlays/{platform}", ["cluster-runtimes"])
    assert pick(objects, "ClusterRole")["rules"] == [
        {"apiGroups": ["serving.kserve.io"], "resources": ["clusterservingruntimes"], "verbs": ["get"]}]
    binding = pick(objects, "ClusterRoleBinding")
    [project] = {subject["namespace"] for subject in binding["subjects"]}
    assert binding["metadata"]["name"] == f"llm-detox-cluster-runtimes-{project}"
    assert pick(objects, "RoleBinding")["subjects"][0] in binding["subjects"]


def test_vllm_gets_the_hugging_face_folder_itself_as_the_platforms_own_runtimes_do(tmp_path: Path) -> None:
    runtime = load(MANIFESTS / "components/vllm/servingruntime.yaml")
    assert "--model=/mnt/models" in runtime["spec"]["containers"][0]["args"]
    plain = pick(with_components(tmp_path / "a", "overlays/kserve/model", ["vllm-model"]), "InferenceService")
    assert plain["spec"]["predictor"]["model"]["storageUri"] == "s3://llm-detox/models/VERSION/artifacts"
    service = pick(with_components(tmp_path / "b", "overlays/openshift-ai/model", ["vllm-model"]), "InferenceService")
    assert service["spec"]["predictor"]["model"]["storage"]["path"] == "models/VERSION/artifacts"
    assert service["metadata"]["annotations"]["opendatahub.io/connection-path"] == "models/VERSION/artifacts"
    for model in (plain, service):
        assert model["spec"]["predictor"]["model"]["modelFormat"]["name"] == "vLLM"
        assert model["spec"]["predictor"]["model"]["runtime"] == "llm-detox-vllm"


@pytest.mark.parametrize(("base", "component"), [("overlays/kserve/model", "autoscaling"),
                                                 ("overlays/openshift-ai/model", "autoscaling-openshift-ai")])
def test_more_engines_are_asked_for_by_the_queues_of_this_project(base: str, component: str, tmp_path: Path) -> None:
    manifests = copied(tmp_path)
    settings = manifests / "settings/namespace.yaml"
    settings.write_text(settings.read_text("utf-8").replace("namespace: llm-detox", "namespace: elsewhere"), "utf-8")
    write_overlay(tmp_path / "mine", base, [component], manifests)
    service = pick(build(tmp_path / "mine"), "InferenceService")
    [metric] = service["spec"]["predictor"]["autoScaling"]["metrics"]
    asked = metric["external"]["metric"]
    assert "llm-detox" not in json.dumps(asked)
    assert "elsewhere" in (asked.get("namespace") or asked["query"])
    for name in ("tgi_queue_size", "vllm:num_requests_waiting"):
        assert name in asked["query"]


def test_openshifts_monitoring_is_asked_with_the_credentials_that_the_platform_makes(tmp_path: Path) -> None:
    objects = with_components(tmp_path, "overlays/openshift-ai/model", ["autoscaling-openshift-ai"])
    [metric] = pick(objects, "InferenceService")["spec"]["predictor"]["autoScaling"]["metrics"]
    assert metric["external"]["authenticationRef"] == {
        "authModes": "bearer", "authenticationRef": {"name": "inference-prometheus-auth"}}
    assert metric["external"]["metric"]["serverAddress"].startswith("https://thanos-querier.openshift-monitoring.svc:9092")
