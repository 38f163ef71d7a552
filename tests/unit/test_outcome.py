"""The first and the last step of a run in a cluster: parameters into the recipe, and what became of the run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llm_detox.errors import UsageError
from llm_detox.outcome import Ending, lines, write_outcome
from llm_detox.recipe_file import load_recipe, settle_recipe
from llm_detox.rephrase.detoxify import read_shard, shard_names
from tests.conftest import REPOSITORY

DEMO = REPOSITORY / "recipes" / "smollm2-demo.yaml"
FAILED = Ending("run-1", "FAILED", "exit-handler-1", "")


def test_a_recipe_as_yaml_and_as_json_are_the_same() -> None:
    recipe = load_recipe(DEMO)
    assert settle_recipe(DEMO.read_text("utf-8")) == recipe
    assert settle_recipe(recipe.model_dump_json()) == recipe


def test_changes_are_taken_as_they_are_empty_ones_are_none_and_overrides_come_last() -> None:
    settled = settle_recipe(
        load_recipe(DEMO).model_dump_json(), overrides=["seed=7", "deploy.name=last"],
        changes={"data.texts.text_column": "true", "model.source": "", "deploy.name": "first"})
    assert settled.data.texts.text_column == "true"
    assert settled.model == load_recipe(DEMO).model
    assert (settled.seed, settled.deploy.name) == (7, "last")


@pytest.mark.parametrize(("text", "told"), [
    ("name: x\nname: y", "stands twice"), ("just words", "a mapping"), ("[1]", "a mapping"),
    ("{a: [", "not valid YAML"), ('{"nam": "x"}', "did you mean 'name'"),
])
def test_a_wrong_recipe_is_refused_with_its_mistake(text: str, told: str) -> None:
    with pytest.raises(UsageError, match=told) as caught:
        settle_recipe(text)
    assert "the parameter recipe" in str(caught.value.place)


def test_the_names_of_shards_are_read_back() -> None:
    assert [read_shard(name) for name in shard_names(3)] == [(0, 3), (1, 3), (2, 3)]
    for wrong in (0, -1, 65):
        with pytest.raises(UsageError, match="shards"):
            shard_names(wrong)


def test_the_outcome_of_a_wrong_recipe_is_written_all_the_same(tmp_path: Path) -> None:
    told = write_outcome(FAILED, "{}", output=tmp_path / "outcome")
    assert json.loads((tmp_path / "outcome" / "outcome.json").read_text("utf-8")) == told
    assert told["state"] == "FAILED"
    assert "not valid" in told["unseen"]
    page = (tmp_path / "outcome" / "outcome.md").read_text("utf-8")
    assert "**FAILED**: run run-1" in page
    assert "not looked at: the recipe is not valid" in page


def test_without_a_cluster_the_outcome_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    told = write_outcome(FAILED, DEMO.read_text("utf-8"), changes={"deploy.target": "kserve"}, output=tmp_path / "out")
    assert told["recipe"] == "smollm2-demo"
    assert "no cluster is configured" in told["unseen"]


def test_a_run_that_succeeded_lists_no_failures() -> None:
    told = {"run": "r", "state": "SUCCEEDED", "recipe": "demo", "serving": "s3://b/m/v", "ready": True,
            "failures": [{"step": "data", "message": "tried again since"}], "removed": None}
    assert lines(told) == ["**SUCCEEDED**: run r of demo", "- serving now: s3://b/m/v (ready)"]
