"""Training on several nodes: the job is what Trainer's API takes, its YAML is kept, and its outcome comes back."""

from __future__ import annotations

import copy
import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from llm_detox import storage
from llm_detox.deploy.kserve_api import Conflict
from llm_detox.deploy.train_job import train_job, train_on_nodes
from llm_detox.errors import DetoxError
from llm_detox.recipe import Recipe
from llm_detox.recipe_nodes import TrainJobSection
from tests.conftest import SHARED
from tests.manifests import strict
from tests.unit.test_data import make_sources

needs_crds = pytest.mark.skipif(not (SHARED / "crds").is_dir(),
                                reason=f"the CRDs are not here ({SHARED / 'crds'}); set LLM_DETOX_SHARED")
INPUTS = "s3://bucket/models/training/x/inputs/" + "ab" * 32


def recipe(folder: Path, **job: Any) -> Recipe:
    return Recipe.model_validate({**make_sources(folder), "training": {"job": {"nodes": 2, **job}}})


def rendered(folder: Path, **job: Any) -> dict[str, Any]:
    return train_job(recipe(folder, **job), "sft", {"input": "input.jsonl", "clean": "clean.jsonl"},
                     name="llm-detox-sft-1", inputs=INPUTS, outcome="s3://bucket/models/training/x/outcome")


@needs_crds
@pytest.mark.parametrize("job", [{}, {"gpus": 8, "nodes": 4}, {"gpus": 0, "tolerations": []},
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


def test_the_nodes_run_the_image_of_the_pipelines_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLM_DETOX_WORKBENCH_IMAGE", raising=False)
    images = importlib.reload(importlib.import_module("components.images"))
    assert TrainJobSection().image == images.WORKBENCH


class Trainer:
    """A cluster whose jobs go through the states given, one a look."""

    namespace = "project"

    def __init__(self, *states: dict[str, Any], there: bool = False) -> None:
        self.states, self.there, self.made = list(states), there, []  # type: ignore[var-annotated]

    def create_train_job(self, job: dict[str, Any]) -> dict[str, Any]:
        if self.there:
            raise Conflict
        self.made.append(job)
        return job

    def train_job(self, name: str) -> dict[str, Any]:
        return {"status": self.states.pop(0) if len(self.states) > 1 else self.states[0]}


RUNNING = {"jobsStatus": [{"name": "node", "active": 2}]}
COMPLETE = {"conditions": [{"type": "Complete", "status": "True"}]}
FAILED = {"conditions": [{"type": "Failed", "status": "True", "message": "node 1 ran out of memory"}]}


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, str]]:
    """The store, as what was published where: file -> content."""
    held: dict[str, dict[str, str]] = {}

    def publish(folder: Path, url: str) -> dict[str, Any]:
        held[url] = {str(path.relative_to(folder)): path.read_text("utf-8")
                     for path in folder.rglob("*") if path.is_file()}
        return {"address": f"{url}/{'ab' * 32}"}

    def fetch(url: str, to: Path) -> dict[str, Any]:
        assert url.endswith("/outcome")
        to.mkdir(parents=True)
        (to / "manifest.json").write_text(json.dumps({"result": {"loss_last": 1.5, "steps": 3}}), "utf-8")
        return {}

    monkeypatch.setattr(storage, "publish", publish)
    monkeypatch.setattr(storage, "fetch_model", fetch)
    return held


def run(folder: Path, cluster: Trainer, text: str = "a line") -> dict[str, Any]:
    adapter = folder / "adapter"
    adapter.mkdir(exist_ok=True, parents=True)
    (adapter / "base.json").write_text('{"base": "owner/name"}', "utf-8")
    records = folder / "records.jsonl"
    records.write_text(json.dumps({"text": text}) + "\n", "utf-8")
    return train_on_nodes(
        recipe(folder.parent / "data"), "dpo", {"adapter": adapter, "records": records}, output=folder / "out",
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
    assert cluster.made == []


def test_a_job_that_fails_says_why_and_where_to_look(
        tmp_path: Path, store: dict[str, dict[str, str]], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DetoxError, match="node 1 ran out of memory") as caught:
        run(tmp_path, Trainer(RUNNING, FAILED))
    assert "oc logs" in (caught.value.remedy or "")
    assert not (tmp_path / "out").exists()
    assert "kind: TrainJob" in capsys.readouterr().err, "the log shows the job"


def test_the_same_inputs_give_the_same_name_and_others_another(
        tmp_path: Path, store: dict[str, dict[str, str]]) -> None:
    cluster = Trainer(COMPLETE)
    for name in ("one", "two"):
        run(tmp_path / name, cluster)
    shutil.rmtree(tmp_path / "two" / "out")
    run(tmp_path / "two", cluster, text="another line")
    one, two, other = (job["metadata"]["name"] for job in cluster.made)
    assert one == two != other
    assert len(one) <= 63
