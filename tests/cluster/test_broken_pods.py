"""Pods whose manifests have one mistake each do not get ready, and say why: that is what the stand-in node is for."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_detox.recipe.cluster import ConnectionSection
from llm_detox.recipe.deploy import DeploySection
from llm_detox.serve.kserve.render import inference_service
from tests.cluster.place import Cloud
from tests.cluster.pods import RunningProject, running_project
from tests.cluster.published import Published
from tests.manifests.kustomize import with_components
from tests.serving.running import wait_for
from tests.standins.kserve.platform import KSERVE

Object = dict[str, Any]
_SECONDS = 180.0  # nine pods start at the same time


@dataclass(frozen=True)
class Mistake:
    """A change to the runtime or to the model, and words of the pod, its events or its log."""

    name: str
    words: str
    of_runtime: Callable[[Object], Any] = lambda runtime: None
    of_model: Callable[[Object], Any] = lambda model: None


def container_of(runtime: Object) -> Object:
    container: Object = runtime["spec"]["containers"][0]
    return container


MISTAKES = (
    Mistake("model-path", "no config.json there",
            lambda runtime: container_of(runtime)["args"].__setitem__(1, "--model=/mnt/model")),
    Mistake("module", "No module named", lambda runtime: container_of(runtime)["command"].__setitem__(
        -1, "vllm.entrypoints.openai.server")),
    Mistake("probed-port", "connection refused",
            lambda runtime: container_of(runtime)["readinessProbe"]["httpGet"].update(port=8081)),
    Mistake("config-map", 'configmap "llm-detox-checksums" not found',
            lambda runtime: runtime["spec"]["volumes"][0]["configMap"].update(name="llm-detox-checksums")),
    Mistake("image", "ErrImagePull: not found",
            lambda runtime: container_of(runtime).update(image="quay.io/nobody/none:1")),
    Mistake("account", "Unable to locate credentials",
            of_model=lambda model: model["spec"]["predictor"].update(serviceAccountName="llm-detox-pipeline")),
    Mistake("address", "No model found in", of_model=lambda model: model["spec"]["predictor"]["model"].update(
        storageUri="s3://llm-detox/models/nothing")),
    Mistake("user", "container has runAsNonRoot and image will run as root",
            of_model=lambda model: model["spec"]["predictor"]["securityContext"].update(runAsUser=0)),
)


def test_each_mistake_is_a_pod_that_does_not_get_ready_and_says_why(
    cloud: Cloud, published: Published, tmp_path: Path
) -> None:
    objects = tuple(with_components(tmp_path / "overlay", "overlays/kserve", ["vllm"]))
    with running_project(cloud, KSERVE, objects, published, tmp_path) as project:
        runtime = next(one for one in objects if one["metadata"]["name"] == "llm-detox-vllm")
        start(project, published, runtime, Mistake("right", ""))
        for mistake in MISTAKES:
            start(project, published, runtime, mistake)
        wait_for(lambda: project.here.pods("right") and is_ready(project, "right"), _SECONDS)
        for mistake in MISTAKES:
            assert said(project, mistake), told_of(project, mistake.name)
            assert not is_ready(project, mistake.name), mistake.name


def test_a_store_that_the_network_policy_shuts_off_is_not_reached(
    cloud: Cloud, published: Published, tmp_path: Path
) -> None:
    objects = copy.deepcopy(with_components(tmp_path / "overlay", "overlays/kserve", ["vllm"]))
    policy = next(one for one in objects if one["kind"] == "NetworkPolicy" and "egress" in one["spec"])
    for rule in policy["spec"]["egress"]:
        rule["ports"] = [port for port in rule["ports"] if port["port"] != 8333]
    with running_project(cloud, KSERVE, tuple(objects), published, tmp_path) as project:
        runtime = next(one for one in objects if one["metadata"]["name"] == "llm-detox-vllm")
        start(project, published, runtime, Mistake("shut", ""))
        wait_for(lambda: "ConnectTimeoutError" in told_of(project, "shut"), _SECONDS)


def start(project: RunningProject, published: Published, runtime: Object, mistake: Mistake) -> None:
    """Apply a model and a runtime of its own, with the mistake in one of them."""
    own = copy.deepcopy(runtime)
    own["metadata"]["name"] = f"vllm-{mistake.name}"
    settings = DeploySection.model_validate({"name": mistake.name, "kserve": {
        "platform": "kserve", "serving": "vllm", "gpus": 0, "runtime": own["metadata"]["name"]}})
    model = inference_service(settings, ConnectionSection(), published.old, namespace=project.here.namespace).first()
    mistake.of_runtime(own)
    mistake.of_model(model)
    project.here.apply([own, model])


def is_ready(project: RunningProject, name: str) -> bool:
    return any((one["type"], one["status"]) == ("Ready", "True")
               for pod in project.here.pods(name) for one in pod["status"].get("conditions", ()))


def said(project: RunningProject, mistake: Mistake) -> bool:
    """Whether its words come."""
    with suppress(AssertionError):
        wait_for(lambda: mistake.words in told_of(project, mistake.name), _SECONDS)
    return mistake.words in told_of(project, mistake.name)


def told_of(project: RunningProject, name: str) -> str:
    """All that the pods, their events and their logs say."""
    events = [one["message"] for one in project.here.api.list("Event", project.here.namespace)
              if one["involvedObject"]["name"].startswith(f"{name}-predictor")]
    pods = project.here.pods(name)
    logs = [project.kubelet.log(pod["metadata"]["name"], "kserve-container") for pod in pods
            if pod["metadata"]["name"] in project.kubelet.by_name]
    return "\n".join([*events, *logs, *(str(pod.get("status")) for pod in pods)])
