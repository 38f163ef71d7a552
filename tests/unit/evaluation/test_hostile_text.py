"""The campaign of hostile text in its small form; `make campaign` runs it whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.campaigns.hostile_text import (
    guard_problems,
    hostile_texts,
    judge_problems,
    page_problems,
    scorer_problems,
    step_problems,
)
from llm_detox.recipe.files import load_recipe
from llm_detox.rehearsal.run import rehearsal_of
from llm_detox.scoring.load import load_scorer

TEXTS = hostile_texts(1, 2)


def test_steps_and_report_keep_hostile_text_and_show_nothing_active(tmp_path: Path) -> None:
    short = [text for text in TEXTS if len(text) < 1000]
    assert list(step_problems(short, tmp_path)) == []


@pytest.mark.heavy
def test_scorer_guard_page_and_judge_take_hostile_text(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = load_scorer(rehearsal_of(load_recipe(repository / "recipes/smollm2-demo.yaml")).scoring.training)
    monkeypatch.setattr("llm_detox.scoring.load.load_scorer", lambda _: scorer)
    assert list(scorer_problems(scorer, TEXTS)) == []
    assert list(guard_problems("ngram", TEXTS)) == []
    assert list(page_problems(scorer, TEXTS)) == []
    assert list(judge_problems(TEXTS)) == []
