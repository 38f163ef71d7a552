"""The detector's runtime and the guardrails in front of the model: valid, restricted, and wired to one another."""

from __future__ import annotations

from typing import Any

import pytest
import typer

from llm_detox.cli import app as cli
from tests.manifests import strict
from tests.manifests.kustomize import MANIFESTS, Object, build, load, overlay, pick
from tests.manifests.objects import needs_crds

DETECTOR, GUARDRAILS = "samples/detector", "samples/guardrails"


@pytest.fixture(scope="module")
def detector() -> list[Object]:
    return build(MANIFESTS / DETECTOR)


@pytest.fixture(scope="module")
def guardrails() -> list[Object]:
    return build(MANIFESTS / GUARDRAILS)


@needs_crds
def test_both_samples_pass_strict_schemas(detector: list[Object], guardrails: list[Object]) -> None:
    for thing in [*detector, *guardrails]:
        strict.check(thing)
    with pytest.raises(strict.Refused, match="orchestratorConfg"):
        wrong = load(MANIFESTS / GUARDRAILS / "orchestrator.yaml")
        wrong["spec"]["orchestratorConfg"] = wrong["spec"].pop("orchestratorConfig")
        strict.check(wrong)


def test_the_detector_runs_restricted_from_an_image_of_the_settings(detector: list[Object]) -> None:
    [container] = pick(detector, "ServingRuntime")["spec"]["containers"]
    context = container["securityContext"]
    assert context["allowPrivilegeEscalation"] is False
    assert context["readOnlyRootFilesystem"] is context["runAsNonRoot"] is True
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert {"readinessProbe", "livenessProbe", "startupProbe"} <= set(container)
    assert {"cpu", "memory"} <= set(container["resources"]["limits"])
    engine = next(one for one in load(MANIFESTS / "settings/kustomization.yaml")["images"] if one["name"] == "engine")
    assert container["image"] == f"{engine['newName']}:{engine['newTag']}"


def test_the_containers_command_is_one_that_the_program_takes(detector: list[Object]) -> None:
    service, [container] = pick(detector, "InferenceService"), pick(detector, "ServingRuntime")["spec"]["containers"]
    program, *words = [*container["command"], *service["spec"]["predictor"]["model"]["args"]]
    assert program == "llm-detox"
    command: Any = typer.main.get_command(cli)
    rest = words
    with command.make_context("llm-detox", words) as context:
        for name in ("detector", "serve"):
            _, command, rest = command.resolve_command(context, rest)
            assert command.name == name
    with command.make_context("serve", rest) as given:
        assert given.params["detectors"] == [f"{service['metadata']['name']}=attributes=/mnt/models"]
        assert given.params["port"] == container["ports"][0]["containerPort"] == 8080
    assert container["readinessProbe"]["httpGet"]["port"] == 8080


def test_the_operator_finds_the_detector_and_the_orchestrator_asks_what_is_there(
        detector: list[Object], guardrails: list[Object]) -> None:
    service = pick(detector, "InferenceService")
    assert service["metadata"]["labels"]["trustyai/guardrails"] == "true"
    assert service["spec"]["predictor"]["model"]["runtime"] == pick(detector, "ServingRuntime")["metadata"]["name"]
    name, model = service["metadata"]["name"], pick(overlay("overlays/openshift-ai/model"), "InferenceService")
    maps = {one["metadata"]["name"]: load(one["data"]["config.yaml"]) for one in guardrails
            if one["kind"] == "ConfigMap"}
    spec = pick(guardrails, "GuardrailsOrchestrator")["spec"]
    config, gateway = maps[spec["orchestratorConfig"]], maps[spec["guardrailsGatewayConfig"]]
    assert config["chat_generation"]["service"] == {"hostname": f"{model['metadata']['name']}-predictor", "port": 80}
    assert config["detectors"][name]["service"] == {"hostname": f"{name}-predictor", "port": 80}
    assert config["detectors"][name]["type"] == "text_contents"
    [looked] = gateway["detectors"]
    assert (looked["name"], looked["input"], looked["output"]) == (name, True, True), "before the model and behind it"
    assert gateway["routes"][0]["detectors"] == [name]
