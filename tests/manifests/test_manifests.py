"""What `kubectl apply -k` would send, checked against strict schemas and against what a restricted project allows."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest

from tests.manifests import kustomize, strict
from tests.manifests.kustomize import (
    MANIFESTS,
    OVERLAYS,
    documented,
    overlay,
    pick,
    with_components,
)
from tests.manifests.objects import containers, needs_crds

PLATFORMS = ("overlays/kserve", "overlays/openshift-ai")


@needs_crds
@pytest.mark.parametrize("name", OVERLAYS)
def test_every_overlay_passes_strict_schemas(name: str) -> None:
    for thing in overlay(name):
        strict.check(thing)


@needs_crds
@pytest.mark.parametrize("name", OVERLAYS)
def test_every_component_passes_where_it_goes_alone_and_with_all_others(name: str, tmp_path: Path) -> None:
    free = documented().get(name, ())
    for components in [*((one,) for one in free), free]:
        for thing in with_components(tmp_path / "-".join(components), name, components):
            strict.check(thing)


@needs_crds
@pytest.mark.slow
@pytest.mark.parametrize("name", OVERLAYS)
def test_every_set_of_components_passes_on_every_overlay(name: str, tmp_path: Path) -> None:
    """All that are documented; an object that several sets give is checked once."""
    for text, components in kustomize.every_combination(tmp_path, name).items():
        thing = kustomize.load(text)
        try:
            strict.check(thing)
        except Exception as error:
            raise AssertionError(f"{name} with {', '.join(components) or 'no component'}") from error


@needs_crds
def test_a_mistake_in_one_set_of_components_is_found_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = "overlays/openshift-ai/model"
    monkeypatch.setattr(kustomize, "documented", lambda: {base: ("canary", "expose", "vllm-model")})
    found = kustomize.every_combination(tmp_path, base)
    services = {components: kustomize.load(text) for text, components in found.items()
                if "kind: InferenceService" in text}
    assert set(services) == {(), ("canary",), ("expose",), ("vllm-model",), ("canary", "expose"),
                             ("canary", "vllm-model"), ("expose", "vllm-model"), ("canary", "expose", "vllm-model")}
    for components, service in services.items():
        alone = with_components(tmp_path / "alone", base, components)
        assert service == pick(alone, "InferenceService"), components


@needs_crds
@pytest.mark.parametrize("path", [
    ("spec", "predictor", "model", "runtme"), ("spec", "predictor", "toleration"), ("metadata", "label"), ("sepc",)])
def test_the_strict_schema_refuses_a_field_that_the_server_would_drop_silently(path: tuple[str, ...]) -> None:
    thing = copy.deepcopy(pick(overlay("overlays/kserve/model"), "InferenceService"))
    place = thing
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = {}
    with pytest.raises(Exception, match=re.escape(path[-1])):
        strict.check(thing)


@pytest.mark.parametrize("name", OVERLAYS)
def test_every_container_runs_restricted_with_limits_and_probes(name: str, tmp_path: Path) -> None:
    objects = [*overlay(name), *with_components(tmp_path, name, documented().get(name, ()))]
    for thing in objects:
        for container in containers(thing):
            where = f"{thing['kind']} {thing['metadata']['name']}, {container['name']}"
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False, where
            assert context["runAsNonRoot"] is True, where
            assert context["readOnlyRootFilesystem"] is True, where
            assert context["capabilities"] == {"drop": ["ALL"]}, where
            assert context["seccompProfile"] == {"type": "RuntimeDefault"}, where
            assert "runAsUser" not in context, f"{where}: the project's range decides the user"
            assert {"cpu", "memory"} <= set(container["resources"]["requests"]), where
            assert {"cpu", "memory"} <= set(container["resources"]["limits"]), where
            assert "readinessProbe" in container, where
            assert "livenessProbe" in container, where


def test_images_are_named_in_one_file_only() -> None:
    settings = (MANIFESTS / "settings" / "kustomization.yaml").read_text("utf-8")
    known = set(re.findall(r"- name: (\S+)", settings))
    for name in ("overlays/kserve", "overlays/openshift-ai", "overlays/openshift-ai/template"):
        for thing in overlay(name):
            for container in containers(thing):
                assert re.search(r"[:@]", container["image"]), f"{container['image']} is not in settings"
                assert not container["image"].endswith(":latest")
    for path in [*MANIFESTS.glob("base/**/*.yaml"), *MANIFESTS.glob("components/**/*.yaml")]:
        for image in re.findall(r"^\s*(?:- )?image: *(\S+)", path.read_text("utf-8"), re.M):
            assert image in known, f"{path}: {image}"


def test_no_secret_values_are_in_the_manifests() -> None:
    for path in MANIFESTS.rglob("*"):
        if path.is_file() and path.name != "connection.env":
            text = path.read_text("utf-8")
            assert not re.search(r"^\s*(stringData|data):\s*$(?=.*kind: Secret)", text, re.M | re.S), path
            assert not re.search(r"(ACCESS_KEY(_ID)?|PASSWORD|TOKEN)\s*[=:]\s*['\"]?[A-Za-z0-9+/]{6,}['\"]?\s*$",
                                 text, re.M), path
    assert "connection.env" in (MANIFESTS / "connection" / ".gitignore").read_text("utf-8").split()


def test_the_runtime_gives_rest_and_grpc_the_names_that_routers_read() -> None:
    engine, caikit = pick(overlay("overlays/kserve"), "ServingRuntime")["spec"]["containers"]
    assert (engine["name"], caikit["name"]) == ("kserve-container", "transformer-container")
    assert "ports" not in engine, "the Service is made from Caikit's ports"
    assert [(port["name"], port["containerPort"]) for port in caikit["ports"]] == [("http", 8080), ("h2c", 8085)]
    assert engine["readinessProbe"]["httpGet"] == {"path": "/health", "port": 3000}, "KServe's own probe would hang"


def test_caikit_in_the_pod_runs_what_runs_on_a_laptop(repository: Path) -> None:
    config = pick(overlay("overlays/kserve"), "ConfigMap")
    folder = repository / "serving" / "caikit"
    needed = {path.name for path in folder.iterdir() if path.suffix in (".py", ".yml")} - {"__init__.py"}
    assert config["data"] == {name: (folder / name).read_text("utf-8") for name in needed}


def test_one_gpu_is_not_waited_for_by_the_pod_that_replaces_its_holder() -> None:
    predictor = pick(overlay("overlays/kserve/model"), "InferenceService")["spec"]["predictor"]
    assert predictor["maxReplicas"] == 1
    assert predictor["deploymentStrategy"]["type"] == "Recreate"


@pytest.mark.parametrize("name", PLATFORMS)
def test_every_account_that_gets_rights_is_one_of_this_project(name: str) -> None:
    binding = pick(overlay(name), "RoleBinding")
    assert {subject["namespace"] for subject in binding["subjects"]} == {binding["metadata"]["namespace"]}


def test_the_pipeline_runner_of_openshift_ai_is_bound_in_its_project() -> None:
    binding = pick(overlay("overlays/openshift-ai"), "RoleBinding")
    assert binding["subjects"] == [
        {"kind": "ServiceAccount", "name": "pipeline-runner-dspa", "namespace": binding["metadata"]["namespace"]}]


@pytest.mark.parametrize("name", PLATFORMS)
def test_the_account_that_deploys_is_the_one_that_may_train(name: str, tmp_path: Path) -> None:
    objects = with_components(tmp_path, name, ["trainjob-rights"])
    bound = {one["metadata"]["name"]: one["subjects"] for one in objects if one["kind"] == "RoleBinding"}
    assert all(subject in bound["llm-detox-train"] for subject in bound["llm-detox-deploy"])


@pytest.mark.parametrize("name", PLATFORMS)
def test_the_deploy_role_may_neither_update_nor_touch_secrets(name: str) -> None:
    rules = pick(overlay(name), "Role")["rules"]
    rights = {(resource, verb) for rule in rules for resource in rule["resources"] for verb in rule["verbs"]}
    assert not any("*" in (resource, verb) for resource, verb in rights)
    assert ("inferenceservices", "update") not in rights
    assert not any(resource in ("secrets", "pods/exec") for resource, _ in rights)


def test_the_template_wraps_the_very_runtime_of_the_overlay() -> None:
    wrapped = pick(overlay("overlays/openshift-ai/template"), "Template")["objects"]
    assert [one["spec"] for one in wrapped] == [pick(overlay("overlays/openshift-ai"), "ServingRuntime")["spec"]]
