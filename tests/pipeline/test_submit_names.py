"""What `submit` makes of a run whose nodes have the names that the real server gives them."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_detox.errors import DetoxError, GateNotPassed
from llm_detox.recipe import Recipe
from llm_detox.recipe.files import load_recipe
from pipelines.placement import Placement
from pipelines.submit import FinishedRun, PipelineServer, StepNames, Submission, submit
from tests.conftest import REPOSITORY
from tests.standins.argo import Scenario
from tests.standins.kfp_api import PipelineServerStandIn

TOKEN = "let-me-in"


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return load_recipe(REPOSITORY / "recipes" / "smollm2-demo.yaml")


def run(recipe: Recipe, folder: Path, scenario: Scenario) -> Submission | FinishedRun:
    token = folder / "token"
    token.write_text(TOKEN, "utf-8")
    with PipelineServerStandIn(TOKEN, scenario) as server:
        return submit(recipe, PipelineServer(server.url, token), experiment="trial", placement=Placement.load(),
                      poll_seconds=0.01)


def test_a_run_that_passes_names_its_steps_as_people_do(recipe: Recipe, tmp_path: Path) -> None:
    finished = run(recipe, tmp_path, Scenario())
    assert isinstance(finished, FinishedRun)
    assert {"sft-raw", "sft-filtered", "sft-detoxified", "evaluate-dpo", "gate", "publish"} <= finished.steps.keys()
    assert not {name for name in finished.steps if name.startswith(("condition", "for-loop", "iteration", "exit"))}


def test_a_refused_gate_is_told_with_the_address_of_its_report(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(GateNotPassed) as refused:
        run(recipe, tmp_path, Scenario(refused=frozenset({"condition-8"})))
    assert "/#/runs/details/run-1" in str(refused.value)
    assert refused.value.exit_code == 3


def test_a_failed_step_has_its_display_name(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(DetoxError, match=r"failed: evaluate-detoxified\n") as failed:
        run(recipe, tmp_path, Scenario(failed=frozenset({"measure-4"})))
    assert failed.value.exit_code == 1


def test_names_are_those_of_the_compiled_pipeline() -> None:
    names = StepNames.read(REPOSITORY / "pipelines/compiled/detox-and-serve.yaml")
    shown = [names.shown(node) for node in ("condition-8", "sft-3", "for-loop-4", "exit-handler-1", "sft-3-driver")]
    assert shown == ["gate", "sft-detoxified", None, None, None]
