"""Training on nodes, with Trainer's measured stand-in and Kubernetes' own Job controller on a real API server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llm_detox import storage
from llm_detox.cluster.train_job import train_on_nodes
from llm_detox.errors import DetoxError
from llm_detox.recipe import Recipe
from tests.cluster.conftest import Object, Project
from tests.serving.running import wait_for
from tests.standins.cluster.pod_state import ContainerState, PodState, Running, Terminated, Waiting
from tests.standins.cluster.scripted import Course, stays
from tests.standins.cluster.trainer import Trainer

_NODE = "node"


@pytest.fixture
def nodes(project: Project, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    """A project in which the Trainer is at work; the store is not in question."""
    monkeypatch.setattr(storage, "publish", lambda folder, url: SimpleNamespace(address=f"{url}/{'1' * 64}"))
    monkeypatch.setattr(storage, "fetch_model", fetched)
    project.bind_training()
    with Trainer(project.here.api, project.namespace):
        yield project


def fetched(_: str, output: Path) -> None:
    """What the first node published."""
    output.mkdir(parents=True)
    (output / "manifest.json").write_text('{"result": {"steps": 3}}', "utf-8")


def train(project: Project, **job: Any) -> Any:
    texts = project.folder / "texts.jsonl"
    texts.write_text("{}\n", "utf-8")
    plain = project.recipe().model_dump(mode="json")
    plain["training"]["job"].update(nodes=2, **job)
    return train_on_nodes(Recipe.model_validate(plain), "sft", {"input": texts}, output=project.folder / "out",
                          cluster=project.cluster, poll_seconds=0.05)


def container(state: Waiting | Running | Terminated, *, restarts: int = 0, last: Terminated | None = None) -> PodState:
    return PodState(containers=(ContainerState(_NODE, state, last, restarts),))


def running(_: Object) -> PodState:
    return container(Running())


def done(_: Object) -> PodState:
    return container(Terminated(0))


def failing(count: int) -> Any:
    end = Terminated(1, message="CUDA out of memory")
    return lambda _: container(Waiting("CrashLoopBackOff"), restarts=count, last=end)


def test_a_training_on_two_nodes_is_complete_when_both_are(
    nodes: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("llm_detox.runs.folders.read_manifest", lambda _: {"result": {"steps": 3}})
    nodes.kubelet.play(Course(((0.0, running), (1.5, done))))
    assert train(nodes) == {"steps": 3}
    assert "nodes 1 active" in capsys.readouterr().err
    [job] = nodes.here.api.list("TrainJob", nodes.namespace)
    assert [(one["type"], one["reason"]) for one in job["status"]["conditions"]] == [("Complete", "AllJobsCompleted")]


def test_a_training_that_fails_again_and_again_ends_its_job_with_the_cause(nodes: Project) -> None:
    nodes.kubelet.play(Course(((0.0, running), (0.4, failing(1)), (0.8, running), (1.2, failing(2)), (1.6, failing(3)),
                               (2.0, failing(7)))))
    with pytest.raises(DetoxError, match=r"ended \d times: CUDA out of memory"):
        train(nodes)
    for kind in ("TrainJob", "Job", "Pod"):
        wait_for(lambda kind=kind: not nodes.here.api.list(kind, nodes.namespace))


def test_the_pods_of_the_nodes_know_their_rank_and_where_the_first_one_is(nodes: Project) -> None:
    nodes.kubelet.play(stays(running))
    with pytest.MonkeyPatch.context() as waiting, pytest.raises(InterruptedError):
        waiting.setattr("llm_detox.cluster.train_job._wait", interrupt)
        train(nodes)
    pods = wait_for(lambda: (pods := nodes.here.api.list("Pod", nodes.namespace)) and len(pods) == 2 and pods)
    ranks = set()
    for pod in pods:
        environment = {one["name"]: one for one in pod["spec"]["containers"][0]["env"]}
        assert environment["PET_MASTER_ADDR"]["value"] == f"{pod['metadata']['labels']['job-name']}-0." + pod["spec"][
            "subdomain"]
        path = environment["PET_NODE_RANK"]["valueFrom"]["fieldRef"]["fieldPath"]
        ranks.add(pod["metadata"]["annotations"][path.split("'")[1]])
    assert ranks == {"0", "1"}


def interrupt(*_: Any) -> None:
    raise InterruptedError
