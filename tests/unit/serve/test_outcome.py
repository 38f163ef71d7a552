"""The first and the last step of a run in a cluster: parameters into the recipe, and what became of the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llm_detox.cluster.api import Cluster
from llm_detox.cluster.objects import Pod
from llm_detox.errors import DetoxError, UsageError
from llm_detox.recipe.files import load_recipe, resolve_recipe
from llm_detox.runs.folders import read_shard, shard_names
from llm_detox.runs.pipeline_step import pipeline_step
from llm_detox.serve.outcome import Ending, Outcome, PodFailure, Served, Steps, write_outcome
from tests.conftest import REPOSITORY

DEMO = REPOSITORY / "recipes" / "smollm2-demo.yaml"
FAILED = Ending("run-1", "FAILED", "exit-handler-1", "")


def test_a_recipe_as_yaml_and_as_json_are_the_same() -> None:
    recipe = load_recipe(DEMO)
    assert resolve_recipe(DEMO.read_text("utf-8")) == recipe
    assert resolve_recipe(recipe.model_dump_json()) == recipe


def test_changes_are_taken_as_they_are_empty_ones_are_none_and_overrides_come_last() -> None:
    settled = resolve_recipe(
        load_recipe(DEMO).model_dump_json(), overrides=["seed=7", "deploy.name=last"],
        changes={"data.texts.text_column": "true", "model.source": "", "deploy.name": "first"})
    assert settled.data.texts.text_column == "true"
    assert settled.model == load_recipe(DEMO).model
    assert (settled.seed, settled.deploy.name) == (7, "last")


@pytest.mark.parametrize(("text", "told"), [
    ("name: x\nname: y", "appears twice"), ("just words", "a mapping"), ("[1]", "a mapping"),
    ("{a: [", "not valid YAML"), ('{"nam": "x"}', "did you mean 'name'"),
])
def test_a_wrong_recipe_is_refused_with_its_mistake(text: str, told: str) -> None:
    with pytest.raises(UsageError, match=told) as caught:
        resolve_recipe(text)
    assert "the parameter recipe" in str(caught.value.place)


def test_the_names_of_shards_are_read_back() -> None:
    assert [read_shard(name) for name in shard_names(3)] == [(0, 3), (1, 3), (2, 3)]
    for wrong in (0, -1, 65):
        with pytest.raises(UsageError, match="shards"):
            shard_names(wrong)


def test_the_outcome_of_a_wrong_recipe_is_written_all_the_same(tmp_path: Path) -> None:
    told = write_outcome(FAILED, "{}", output=tmp_path / "outcome").as_json()
    assert json.loads((tmp_path / "outcome" / "outcome.json").read_text("utf-8")) == told
    assert told["state"] == "FAILED"
    assert "not valid" in str(told["unseen"])
    page = (tmp_path / "outcome" / "outcome.md").read_text("utf-8")
    assert "**FAILED**: run run-1" in page
    assert "not looked at: the recipe is not valid" in page


def test_without_a_cluster_the_outcome_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    told = write_outcome(FAILED, DEMO.read_text("utf-8"), changes={"deploy.target": "kserve"}, output=tmp_path / "out")
    assert told.recipe == "smollm2-demo"
    assert "no cluster is configured" in str(told.unseen)


def test_a_run_that_succeeded_lists_no_failures() -> None:
    outcome = Outcome(Ending("r", "SUCCEEDED"), "now", "demo", served=Served("s3://b/m/v", True), canaries=(),
                      steps=Steps((PodFailure("data", "tried again since"),), None))
    assert outcome.lines() == ["**SUCCEEDED**: run r of demo", "- serving now: s3://b/m/v (ready)"]


def pod(node: str, *, exit_code: int = 0, words: str = "", **status: Any) -> Pod:
    """A step's pod as Argo leaves it."""
    ended = {"terminated": {"exitCode": exit_code, "reason": "OOMKilled" if exit_code == 137 else "Error",
                            "message": words}}
    return Pod.of({"metadata": {"name": f"demo-abc-{abs(hash(node))}",
                                "annotations": {"workflows.argoproj.io/node-name": f"demo-abc.root.steps.{node}"}},
                   "status": {"containerStatuses": [{"name": "main", "state": ended}], **status}})


class Seen:
    """A cluster in which a run left these pods, and nothing else can be looked at."""

    def __init__(self, *pods: Pod) -> None:
        self.pods = list(pods)

    def pods_of_run(self, run: str) -> list[Pod]:
        return self.pods

    def service(self, name: str) -> None:
        raise DetoxError("no right to get inferenceservices")


def told_of(folder: Path, monkeypatch: pytest.MonkeyPatch, state: str, *pods: Pod) -> Outcome:
    asked: list[str | None] = []

    def connect(namespace: str | None = None, **_: Any) -> Seen:
        asked.append(namespace)
        return Seen(*(pods if namespace is None else ()))  # the pods are in the pipeline's own project

    monkeypatch.setattr(Cluster, "connect", connect)
    told = write_outcome(Ending("run-1", state, "steps"), DEMO.read_text("utf-8"), output=folder / "outcome",
                         changes={"deploy.target": "kserve", "deploy.namespace": "serving"})
    assert set(asked) == {None, "serving"}
    return told


def test_a_step_that_was_killed_is_told_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evicted = pod("dpo.executor", phase="Failed", reason="Evicted", message="low on memory", containerStatuses=[])
    told = told_of(tmp_path, monkeypatch, "FAILED", pod("sft.executor(0)", exit_code=137), evicted,
                   pod("convert-driver", exit_code=1))
    assert told.as_json()["failures"] == [{"step": "sft", "message": "OOMKilled, exit code 137"},
                                {"step": "dpo", "message": "Evicted: low on memory"},
                                {"step": "convert", "message": "Error, exit code 1"}]


def test_only_the_last_attempt_at_a_step_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = told_of(tmp_path, monkeypatch, "FAILED",
                   pod("data.executor(1)"), pod("data.executor(0)", exit_code=1),
                   *(pod(f"sft.executor({number})", exit_code=1, words=str(number)) for number in (1, 10, 2)))
    assert told.as_json()["failures"] == [{"step": "sft", "message": "10"}]


def test_the_page_has_the_failed_steps_own_words_its_place_and_remedy(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = tmp_path / "words"
    monkeypatch.setenv("LLM_DETOX_ERROR_FILE", str(words))
    with pytest.raises(SystemExit), pipeline_step("sft on texts.jsonl", DEMO.read_text("utf-8")):
        raise DetoxError("no memory\n" + "\u00e4" * 9000, place="batch 3", remedy="a smaller batch")
    assert len(words.read_bytes()) <= 4096, "a pod's status keeps no more"
    told = told_of(tmp_path, monkeypatch, "FAILED",
                   pod("sft.executor(0)", exit_code=1, words=words.read_text("utf-8")))
    page = told.lines()
    assert page[1].startswith("- failed: sft on texts.jsonl: no memory")
    assert page[1].endswith("(at batch 3)")
    assert page[2] == "  - remedy: a smaller batch"


def test_an_error_that_nobody_foresaw_leaves_its_last_words_too(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = tmp_path / "words"
    monkeypatch.setenv("LLM_DETOX_ERROR_FILE", str(words))
    with pytest.raises(KeyError), pipeline_step("data", DEMO.read_text("utf-8")):
        raise KeyError("column")
    assert json.loads(words.read_text("utf-8"))["message"] == "KeyError: 'column'"


@pytest.mark.parametrize(("steps", "gate"), [
    (["report.executor"], "not passed"), (["report-driver"], "not passed"),
    (["report-driver", "publish.executor"], "passed"), (["deploy.executor"], None)])
def test_a_run_that_succeeded_tells_whether_the_gate_was_passed(
        steps: list[str], gate: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = told_of(tmp_path, monkeypatch, "SUCCEEDED", *map(pod, steps))
    assert told.as_json().get("gate") == gate
    assert any("did not pass the gate" in line for line in told.lines()) == (gate == "not passed")


def test_what_cannot_be_seen_does_not_hide_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = told_of(tmp_path, monkeypatch, "FAILED", pod("sft.executor(0)", exit_code=1, words="why"))
    assert told.as_json()["failures"] == [{"step": "sft", "message": "why"}]
    assert told.unseen == "no right to get inferenceservices"


def test_a_pod_without_an_account_still_writes_the_outcome(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "cluster.example")
    told = write_outcome(FAILED, DEMO.read_text("utf-8"), changes={"deploy.target": "kserve"}, output=tmp_path / "out")
    assert "has no account" in str(told.unseen)


@pytest.mark.parametrize(("state", "shown"), [
    ("COMPLETE", "SUCCEEDED"), ("RUNNING", "SUCCEEDED"), ("SUCCEEDED", "SUCCEEDED"), ("FAILED", "FAILED"),
    ("CANCELED", "CANCELED")])
def test_the_states_of_an_exit_handler_are_read_as_the_server_means_them(state: str, shown: str) -> None:
    """2.16 never says SUCCEEDED there: its launcher knows COMPLETE and RUNNING."""
    lines = Outcome(Ending("r", state, "sft", "no memory"), "now", "demo").lines()
    assert lines[0] == f"**{shown}**: run r of demo"
    assert ("- failed: sft: no memory" in lines) == (shown != "SUCCEEDED")
