"""Training on several nodes: the job is what Trainer's API takes, its YAML is kept, and its outcome comes back."""

from __future__ import annotations

import copy
import importlib
import itertools
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from llm_detox import storage
from llm_detox.cluster.api import Conflict
from llm_detox.cluster.objects import Pod, TrainJob
from llm_detox.cluster.train_job import remove_running, train_job, train_on_nodes
from llm_detox.errors import DetoxError
from llm_detox.recipe import Recipe
from tests.conftest import SHARED
from tests.helpers.sources import make_sources
from tests.manifests import strict
from tests.manifests.kustomize import overlay

needs_crds = pytest.mark.skipif(not (SHARED / "crds").is_dir(),
                                reason=f"the CRDs are not here ({SHARED / 'crds'}); set LLM_DETOX_SHARED")
INPUTS = "s3://bucket/models/training/x/inputs/" + "ab" * 32


def recipe(folder: Path, **job: Any) -> Recipe:
    connection = {key: job.pop(key) for key in ("ca_config_map",) if key in job}
    return Recipe.model_validate(
        {**make_sources(folder), "training": {"job": {"nodes": 2, **job}}, "cluster": connection})


def rendered(folder: Path, **job: Any) -> dict[str, Any]:
    settings = recipe(folder, **job)
    return train_job(settings.training.job, settings.cluster, "sft", {"input": "input.jsonl", "clean": "clean.jsonl"},
                     name="llm-detox-sft-1", inputs=INPUTS, outcome="s3://bucket/models/training/x/outcome")


@needs_crds
@pytest.mark.parametrize("job", [{}, {"ca_config_map": "own-ca"}, {"gpus": 8, "nodes": 4},
                                 {"gpus": 0, "tolerations": [], "shm": None},
                                 {"node_selector": {"zone": "a"}, "tolerations": ["gpu=yes:NoSchedule"]}])
def test_the_job_is_one_that_trainers_api_takes(tmp_path: Path, job: dict[str, Any]) -> None:
    strict.check(rendered(tmp_path, **job))


@needs_crds
@pytest.mark.parametrize("path", [("spec", "trainer", "numNode"), ("spec", "runtime"), ("spec", "trainer", "envs"),
                                  ("spec", "runtimePatches", 0, "trainingRuntimeSpecs")])
def test_a_field_that_the_api_would_drop_silently_is_refused(tmp_path: Path, path: tuple[Any, ...]) -> None:
    job = copy.deepcopy(rendered(tmp_path))
    place = job
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = {}
    with pytest.raises(strict.Refused):
        strict.check(job)


def test_every_node_trains_with_all_its_gpus_and_the_first_one_publishes(tmp_path: Path) -> None:
    trainer = rendered(tmp_path, nodes=3, gpus=4)["spec"]["trainer"]
    assert (trainer["numNodes"], trainer["numProcPerNode"]) == (3, 4)
    assert trainer["resourcesPerNode"]["limits"]["nvidia.com/gpu"] == 4
    fetch, train, publish = trainer["args"][0].splitlines()[2:]
    assert fetch == f"llm-detox models fetch {INPUTS} inputs"
    assert train.startswith("torchrun --no-python llm-detox sft --recipe inputs/recipe.json "
                            "--input inputs/input.jsonl --clean inputs/clean.jsonl")
    assert publish.startswith('if [ "${PET_NODE_RANK:-0}" = 0 ]; then llm-detox publish outcome s3://')
    values = [one for one in trainer["env"] if "value" in one]
    assert not values, "keys come from the Secret, not from the job"


def test_the_nodes_run_the_image_of_the_pipelines_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLM_DETOX_WORKBENCH_IMAGE", raising=False)
    images = importlib.reload(importlib.import_module("components.images"))
    assert rendered(tmp_path)["spec"]["trainer"]["image"] == images.WORKBENCH
    monkeypatch.setenv("LLM_DETOX_WORKBENCH_IMAGE", "registry.example/team/workbench-python:1")
    assert rendered(tmp_path)["spec"]["trainer"]["image"] == "registry.example/team/workbench-python:1"
    assert rendered(tmp_path, image="other:2")["spec"]["trainer"]["image"] == "other:2"


def pod_of(job: dict[str, Any]) -> dict[str, Any]:
    (patch,) = job["spec"]["runtimePatches"]
    (node,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod: dict[str, Any] = node["template"]["spec"]["template"]["spec"]
    return pod


def test_the_nodes_read_gated_models_and_trust_an_own_authority_as_the_steps_do(tmp_path: Path) -> None:
    job = rendered(tmp_path, ca_config_map="llm-detox-trusted-ca")
    env = {one["name"]: one for one in job["spec"]["trainer"]["env"]}
    assert env["HF_TOKEN"]["valueFrom"]["secretKeyRef"] == {
        "name": "llm-detox-hub", "key": "HF_TOKEN", "optional": True}
    pod = pod_of(job)
    volume, mount = pod["volumes"][-1], pod["containers"][0]["volumeMounts"][-1]
    assert (volume["name"], volume["configMap"]["name"]) == (mount["name"], "llm-detox-trusted-ca")
    for name in ("AWS_CA_BUNDLE", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"):
        assert env[name]["value"] == f"{mount['mountPath']}/ca-bundle.crt"
    assert [one["name"] for one in pod_of(rendered(tmp_path))["volumes"]] == ["shm"]


def test_the_gpus_of_a_node_have_room_to_talk_through(tmp_path: Path) -> None:
    pod = pod_of(rendered(tmp_path, shm="16Gi"))
    assert pod["volumes"] == [{"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "16Gi"}}]
    assert pod["containers"][0]["volumeMounts"] == [{"name": "shm", "mountPath": "/dev/shm"}]  # noqa: S108
    without = pod_of(rendered(tmp_path, shm=None))
    assert "volumes" not in without
    assert "volumeMounts" not in without["containers"][0]


def test_the_pods_of_the_nodes_are_restricted_and_hold_no_token(tmp_path: Path) -> None:
    pod = pod_of(rendered(tmp_path))
    assert pod["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    assert pod["containers"][0]["securityContext"] == {
        "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    accounts = [one for one in overlay("overlays/openshift-ai") if one["kind"] == "ServiceAccount"]
    (account,) = [one for one in accounts if one["metadata"]["name"] == pod["serviceAccountName"]]
    assert account["automountServiceAccountToken"] is False


class Trainer:
    """A cluster whose jobs go through the states given, one a look."""

    namespace = "project"

    def __init__(self, *states: dict[str, Any] | None, there: bool = False, pods: Sequence[Pod] = ()) -> None:
        self.states, self.there, self.pods = list(states), there, list(pods)
        self.made: list[dict[str, Any]] = []
        self.removed: list[str] = []

    def create_train_job(self, job: dict[str, Any]) -> dict[str, Any]:
        if self.there:
            raise Conflict("already exists")
        self.made.append(job)
        return job

    def train_job(self, name: str) -> TrainJob | None:
        status = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        return None if status is None else TrainJob.of({"metadata": {"name": name}, "status": status})

    def pods_of_train_job(self, name: str) -> list[Pod]:
        return self.pods

    def train_jobs(self, selector: str) -> list[TrainJob]:
        return [TrainJob.of({"metadata": {"name": f"{selector}-{number}"}, "status": status})
                for number, status in enumerate(self.states)]

    def delete_train_job(self, name: str) -> None:
        self.removed.append(name)
        self.there = False


RUNNING = {"jobsStatus": [{"name": "node", "active": 2}]}
COMPLETE = {"conditions": [{"type": "Complete", "status": "True"}]}
FAILED = {"conditions": [{"type": "Failed", "status": "True", "message": "node 1 ran out of memory"}]}


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, str]]:
    """The store, as what was published where: file -> content."""
    held: dict[str, dict[str, str]] = {}

    def publish(folder: Path, url: str) -> SimpleNamespace:
        held[url] = {str(path.relative_to(folder)): path.read_text("utf-8")
                     for path in folder.rglob("*") if path.is_file()}
        return SimpleNamespace(address=f"{url}/{'ab' * 32}")

    def fetch(url: str, to: Path) -> None:
        assert url.endswith("/outcome")
        to.mkdir(parents=True)
        (to / "manifest.json").write_text(json.dumps({"result": {"loss_last": 1.5, "steps": 3}}), "utf-8")

    monkeypatch.setattr(storage, "publish", publish)
    monkeypatch.setattr(storage, "fetch_model", fetch)
    return held


def run(folder: Path, cluster: Trainer, text: str = "a line", **job: Any) -> dict[str, Any]:
    adapter = folder / "adapter"
    adapter.mkdir(exist_ok=True, parents=True)
    (adapter / "base.json").write_text('{"base": "owner/name"}', "utf-8")
    records = folder / "records.jsonl"
    records.write_text(json.dumps({"text": text}) + "\n", "utf-8")
    return train_on_nodes(
        recipe(folder.parent / "data", **job), "dpo", {"adapter": adapter, "records": records}, output=folder / "out",
        cluster=cluster, poll_seconds=0)  # type: ignore[arg-type]


def test_a_step_sends_its_inputs_waits_and_brings_the_outcome_back(
        tmp_path: Path, store: dict[str, dict[str, str]], capsys: pytest.CaptureFixture[str]) -> None:
    cluster = Trainer({}, RUNNING, COMPLETE)
    assert run(tmp_path, cluster) == {"loss_last": 1.5, "steps": 3}
    (sent,) = store.values()
    assert set(sent) == {"recipe.json", "adapter/base.json", "records.jsonl"}
    assert Recipe.model_validate_json(sent["recipe.json"]).training.job.nodes == 2
    (job,) = cluster.made
    assert yaml.safe_load((tmp_path / "out" / "trainjob.yaml").read_text("utf-8")) == job
    assert "--adapter inputs/adapter --records inputs/records.jsonl" in job["spec"]["trainer"]["args"][0]
    assert "nodes 2 active" in capsys.readouterr().err
    if (SHARED / "crds").is_dir():
        strict.check(job)


def test_a_step_that_is_tried_again_waits_for_the_job_that_is_there(
        tmp_path: Path, store: dict[str, dict[str, str]]) -> None:
    cluster = Trainer(RUNNING, COMPLETE, there=True)
    assert run(tmp_path, cluster)["steps"] == 3
    assert (cluster.made, cluster.removed) == ([], [])


def test_a_job_that_failed_before_is_made_anew(tmp_path: Path, store: dict[str, dict[str, str]]) -> None:
    cluster = Trainer(FAILED, RUNNING, COMPLETE, there=True)
    assert run(tmp_path, cluster)["steps"] == 3
    assert cluster.removed == [job["metadata"]["name"] for job in cluster.made]


def test_a_job_that_somebody_removes_ends_the_step_at_once(tmp_path: Path, store: dict[str, dict[str, str]]) -> None:
    with pytest.raises(DetoxError, match="was removed"):
        run(tmp_path, Trainer(RUNNING, None))


def test_a_job_that_takes_too_long_is_removed(tmp_path: Path, store: dict[str, dict[str, str]],
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = itertools.count(step=10)
    monkeypatch.setattr("llm_detox.cluster.train_job.time", SimpleNamespace(
        monotonic=lambda: next(seconds), sleep=lambda pause: None))
    cluster = Trainer(RUNNING)
    with pytest.raises(DetoxError, match="not complete after"):
        run(tmp_path, cluster, deadline_seconds=30)
    assert len(cluster.removed) == 1


def test_a_job_that_a_queue_holds_back_is_not_late(
        tmp_path: Path, store: dict[str, dict[str, str]], monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str]) -> None:
    seconds = itertools.count(step=10)
    monkeypatch.setattr("llm_detox.cluster.train_job.time", SimpleNamespace(
        monotonic=lambda: next(seconds), sleep=lambda pause: None))
    held = {"conditions": [{"type": "Suspended", "status": "True", "message": "TrainJob is suspended"}]}
    cluster = Trainer(*[held] * 20, RUNNING, COMPLETE)
    assert run(tmp_path, cluster, deadline_seconds=60, queue="gpus")["steps"] == 3
    assert [job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] for job in cluster.made] == ["gpus"]
    assert capsys.readouterr().err.count("suspended, as a queue does") == 1
    assert not cluster.removed


def test_the_jobs_that_a_run_left_running_are_removed_and_those_that_ended_kept() -> None:
    cluster = Trainer(RUNNING, FAILED, {}, COMPLETE)
    assert remove_running(cluster, "r") == ["llm-detox/run=r-0", "llm-detox/run=r-2"]  # type: ignore[arg-type]
    assert cluster.removed == ["llm-detox/run=r-0", "llm-detox/run=r-2"]


def test_a_job_carries_its_run_so_that_it_is_found_when_that_ends(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_DETOX_RUN", "run-1")
    assert rendered(tmp_path)["metadata"]["labels"]["llm-detox/run"] == "run-1"
    monkeypatch.delenv("LLM_DETOX_RUN")
    assert "llm-detox/run" not in rendered(tmp_path)["metadata"]["labels"]


def test_a_job_that_fails_says_why_and_where_to_look(
        tmp_path: Path, store: dict[str, dict[str, str]], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DetoxError, match="node 1 ran out of memory") as caught:
        run(tmp_path, Trainer(RUNNING, FAILED))
    assert "oc logs" in (caught.value.remedy or "")
    assert not (tmp_path / "out").exists()
    assert "kind: TrainJob" in capsys.readouterr().err, "the log shows the job"


def node(number: int, *, failed: bool = False, restarts: int = 0, message: str = "") -> Pod:
    ended = {"terminated": {"exitCode": 1, "reason": "Error", "message": message}}
    return Pod.of({
        "metadata": {"name": f"job-node-0-{number}-x",
                     "annotations": {"batch.kubernetes.io/job-completion-index": str(number)}},
        "status": {"phase": "Failed" if failed else "Running", "containerStatuses": [
            {"name": "node", "restartCount": restarts, "state": ended if failed else {},
             "lastState": ended if restarts else {}}]}})


@pytest.mark.parametrize("pods", [
    [node(1, failed=True, message="a bad line 7"), node(1, failed=True, message="a bad line 7"), node(0)],
    [node(1, restarts=2, message="a bad line 7"), node(0)],
])
def test_a_training_that_fails_again_is_not_started_six_times(
        tmp_path: Path, store: dict[str, dict[str, str]], pods: list[Pod]) -> None:
    """While it runs, Trainer gives the job no condition at all, and Kubernetes starts a node six times again."""
    cluster = Trainer(RUNNING, pods=pods)
    with pytest.raises(DetoxError, match=r"node 1 ended 2 times: a bad line 7 \(exit code 1\)"):
        run(tmp_path, cluster)
    assert len(cluster.removed) == 1


def test_nodes_that_fail_once_may_try_again(tmp_path: Path, store: dict[str, dict[str, str]]) -> None:
    cluster = Trainer(RUNNING, RUNNING, COMPLETE, pods=[node(0, restarts=1), node(1, failed=True), node(1)])
    assert run(tmp_path, cluster)["steps"] == 3
    with pytest.raises(DetoxError, match="ended 1 times"):
        run(tmp_path / "strict", Trainer(RUNNING, pods=[node(0, restarts=1)]), restarts=0)


def test_the_same_inputs_give_the_same_name_and_others_another(
        tmp_path: Path, store: dict[str, dict[str, str]]) -> None:
    cluster = Trainer(COMPLETE)
    for name in ("one", "two"):
        run(tmp_path / name, cluster)
    shutil.rmtree(tmp_path / "two" / "out")
    run(tmp_path / "two", cluster, text="another line")
    one, two, other = (job["metadata"]["name"] for job in cluster.made)
    assert one == two != other


def test_the_longest_name_leaves_room_for_that_of_its_pods(tmp_path: Path, store: dict[str, dict[str, str]]) -> None:
    cluster = Trainer(COMPLETE)
    names = set()
    for number, end in enumerate("ab"):  # what tells two services apart may be cut; the digest tells them apart then
        settings = Recipe.model_validate({
            **make_sources(tmp_path / "data"), "training": {"job": {"nodes": 2}}, "deploy": {"name": "m" * 52 + end}})
        texts = tmp_path / "texts.jsonl"
        texts.write_text("{}\n", "utf-8")
        train_on_nodes(settings, "sft", {"input": texts}, output=tmp_path / str(number),
                       cluster=cluster, poll_seconds=0)  # type: ignore[arg-type]
        names.add(cluster.made[-1]["metadata"]["name"])
    assert len(names) == 2
    assert all(len(f"{name}-node-0-0-xxxxx") <= 63 for name in names)
