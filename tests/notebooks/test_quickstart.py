"""The quickstart, and other recipes, run with tiny models."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.notebooks.conftest import run

pytestmark = pytest.mark.notebooks


def test_the_quickstart_runs_the_pipeline_up_to_an_answer(environment: dict[str, str]) -> None:
    text = run("0-quickstart", environment)
    assert "verdict: pass" in text
    assert "== smoke done" in text
    assert re.search(r"published as s3://\S+", text)


@pytest.mark.parametrize("recipe", ["trustyai-opt350m", pytest.param("llama2-13b-stop-hate", marks=pytest.mark.slow)])
def test_one_cell_switches_to_another_recipe(environment: dict[str, str], recipe: str, tmp_path: Path) -> None:
    """The variable is that cell's value."""
    changed = {"LLM_DETOX_NOTEBOOK_RECIPE": recipe, "LLM_DETOX_NOTEBOOK_RUNS": str(tmp_path)}
    for notebook in ("1-sft", "2-eval"):
        text = run(notebook, environment, **changed)
        assert recipe in text
    assert "verdict: " in text
