"""From a published model to an answer: the pod is a real Caikit runtime and engine on this machine."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from llm_detox import processes
from llm_detox.errors import DetoxError
from llm_detox.export import convert
from llm_detox.processes import Process
from llm_detox.recipe import Recipe
from llm_detox.serve.kserve.deploy import answers
from llm_detox.serve.kserve.status import Patience
from llm_detox.serve.local_stack import Ports, caikit_python, start, wait_until_ready
from llm_detox.serve.smoke import smoke
from llm_detox.storage import fetch_model, publish
from llm_detox.storage.seaweed import find_weed, seaweed
from tests.cluster.conftest import Project
from tests.cluster.controller import Controller, Object, version_of

pytestmark = pytest.mark.slow
SLOW = Patience(ready=400, start=400, settle=1, poll=0.2)


class Kubelet:
    """Plays storage initializer and pod: fetches what the InferenceService names, serves it, and reports it ready."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.processes, self.failure = folder, list[Process](), ""
        self._started: set[str] = set()

    def act(self, controller: Controller, service: Object, looks: int) -> None:
        version = version_of(service)
        if version not in self._started:
            self._started.add(version)
            controller.status(service, ready=False)
            threading.Thread(target=self._serve, args=(controller, service), daemon=True).start()

    def _serve(self, controller: Controller, service: Object) -> None:
        try:
            name, version = service["metadata"]["name"], version_of(service)
            model, ports = self.folder / version, Ports.choose()
            fetch_model(service["spec"]["predictor"]["model"]["storageUri"], model)
            started = start(model, name, ports, self.folder / f"{version}-logs")
            self.processes += started
            wait_until_ready(started, ports, name)
            controller.address, controller.grpc = ports.urls()["rest"], ports.urls()["grpc"]
            controller.only_pod(service)
            controller.status(service, ready=True)
        except Exception as error:
            self.failure = repr(error)
            controller.status(service, ready=False, transition="BlockedByFailedLoad",
                              failure={"reason": "ModelLoadFailed", "message": str(error)})

    def end(self) -> None:
        for process in reversed(self.processes):
            processes.stop(process)


@pytest.fixture
def kubelet(project: Project) -> Iterator[Kubelet]:
    kubelet = Kubelet(project.folder / "node")
    yield kubelet
    kubelet.end()


@pytest.fixture
def address(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A tiny model, published to a real store."""
    try:
        caikit_python()
        find_weed()
    except DetoxError as error:
        pytest.skip(str(error))
    convert(model=str(tiny_llama), output=tmp_path / "converted")
    with seaweed(tmp_path / "store", buckets=["models"]) as store:
        for name, value in store.env().items():
            monkeypatch.setenv(name, value)
        yield publish(tmp_path / "converted", "s3://models/tiny").address


def test_deploy_ready_and_smoke_over_rest_and_grpc(
    project: Project, kubelet: Kubelet, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llm_detox.serve.kserve.deploy import deploy_kserve

    monkeypatch.setattr("llm_detox.serve.smoke._toxicity", lambda *_: None)  # the scorer is not in question here
    project.controller.play("llm-detox", kubelet.act)
    recipe: Recipe = project.recipe()
    deployment = project.folder / "deployment"
    result = deploy_kserve(recipe.deploy, recipe.cluster, address=address, output=deployment,
                           cluster=project.cluster, probe=answers, patience=SLOW)
    assert result.address == address, kubelet.failure
    told = smoke(recipe, deployment=deployment, output=project.folder / "smoke")
    assert told.text.strip()
    assert {(one.protocol, one.mode) for one in told.answers} == {
        ("rest", "unary"), ("rest", "stream"), ("grpc", "unary"), ("grpc", "stream")}


def test_a_version_that_is_not_in_the_store_is_said_with_its_cause(
    project: Project, kubelet: Kubelet, address: str
) -> None:
    from llm_detox.serve.kserve.deploy import deploy_kserve

    project.controller.play("llm-detox", kubelet.act)
    recipe: Recipe = project.recipe()
    with pytest.raises(DetoxError, match="BlockedByFailedLoad: ModelLoadFailed"):
        deploy_kserve(recipe.deploy, recipe.cluster, address=address[:-6] + "000000",
                      output=project.folder / "deployment", cluster=project.cluster, patience=SLOW)
