"""Every recipe of the project runs end to end with its own settings, on tiny models and data of the same kind."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from llm_detox.errors import DetoxError
from llm_detox.recipe.files import load_recipe
from llm_detox.rehearsal.models import family_of
from llm_detox.rehearsal.run import rehearsal_of, rehearse
from llm_detox.runs.artifacts import plain
from tests.helpers.pipelines import run_pipeline

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
FAST = {"llama2-7b-chat-safety", "llama2-7b-sft-dpo-detox", "trustyai-opt350m"}  # the others take a minute and more
SETTINGS = ("training", "detoxify", "evaluation", "gate", "data")
SWAPPED = {"source", "files", "base", "experts", "expert", "anti_expert", "fluency_model", "similarity_model", "model",
           "url"}


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLM_DETOX_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def flat(value: object, path: str = "") -> dict[str, object]:
    """Dotted path -> value, without what a rehearsal swaps."""
    if isinstance(value, dict):
        return {key: one for name, part in value.items() if name not in SWAPPED
                for key, one in flat(part, f"{path}.{name}").items()}
    if isinstance(value, list) and any(isinstance(part, dict) for part in value):
        return {key: one for number, part in enumerate(value) for key, one in flat(part, f"{path}.{number}").items()}
    return {path: value}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_rehearsal_changes_models_and_data_and_no_setting(path: Path) -> None:
    recipe = load_recipe(path)
    tiny = rehearsal_of(recipe)
    for section in SETTINGS:
        assert flat(getattr(tiny, section).model_dump()) == flat(getattr(recipe, section).model_dump())
    assert family_of(tiny.model.source.rsplit("/", 1)[-1]) == family_of(recipe.model.source)
    assert Path(tiny.data.texts.source).exists()


def test_a_rehearsal_of_a_judged_training_on_many_nodes_stays_here_and_has_a_judge() -> None:
    recipe = load_recipe(RECIPES[0], ["training.job.nodes=4", "evaluation.judged_prompts=10",
                                      "judge.reader.model=owner/judge"])
    tiny = rehearsal_of(recipe)
    assert tiny.training.job.nodes == 1
    assert tiny.judge.reader.model == tiny.model.source


@pytest.mark.parametrize("path", [
    pytest.param(path, marks=[] if path.stem in FAST else [pytest.mark.slow], id=path.stem) for path in RECIPES])
def test_a_recipe_runs_from_its_data_to_a_model_that_can_be_served(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path)
    results = {step: plain(result) for step, result in rehearse(recipe, output=tmp_path / "steps").items()}
    assert (tmp_path / "steps" / "model" / "artifacts" / "config.json").exists()
    trained = [figures for step, figures in results.items() if step.startswith("sft")]
    assert all(figures["steps"] > 0 and figures["tokens"] > 0 for figures in trained)
    if recipe.training.sft.max_steps:
        assert all(figures["steps"] == recipe.training.sft.max_steps for figures in trained)
    if "dpo" in results and recipe.training.dpo.enabled:
        assert results["dpo"]["steps"] > 0
    if recipe.detoxify.refusal:
        records = [json.loads(line) for line in (tmp_path / "steps/rewritten/records.jsonl").read_text().splitlines()]
        answers = {record["messages"][-1]["content"] for record in records if record["action"] == "rewritten"}
        assert answers == {recipe.detoxify.refusal}
        assert any(record["action"] == "kept" for record in records), "benign conversations keep their answers"


@pytest.mark.slow
def test_the_pipeline_runs_a_recipe_tiny(tmp_path: Path) -> None:
    run = run_pipeline(Path("recipes/llama2-7b-sft-dpo-detox.yaml"), tmp_path, "--tiny")
    assert run.returncode in (0, 3), run.stdout[-3000:] + run.stderr[-3000:]
    assert list((tmp_path / "runs/llama2-7b-sft-dpo-detox-tiny/artifacts").glob("*/report/report/report.html"))


def test_an_architecture_without_a_tiny_model_is_named() -> None:
    with pytest.raises(DetoxError, match="no tiny model"):
        family_of("owner/mamba-130m")
