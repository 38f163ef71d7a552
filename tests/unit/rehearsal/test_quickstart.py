"""A newcomer's table becomes a recipe of a fitting size, or one error says what is missing."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path

import pytest

from llm_detox.data.prepare import prepare_data
from llm_detox.errors import DetoxError, UsageError
from llm_detox.recipe.files import load_recipe
from llm_detox.rehearsal import quickstart as module
from llm_detox.rehearsal.quickstart import quickstart


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "matmul_gflops", lambda: 160.0)


def _table(path: Path, toxic: int, harmless: int) -> Path:
    def rows() -> Iterable[tuple[str, int]]:
        yield from ((f"comment {number} says what a stupid idiot you are", 1) for number in range(toxic))
        yield from ((f"comment {number} says what a lovely day it is", 0) for number in range(harmless))

    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("comment", "rude"), *rows()])
    return path


def test_the_recipe_takes_the_toxic_texts_and_as_many_others(tmp_path: Path) -> None:
    made = quickstart(_table(tmp_path / "My Comments.csv", 100, 500), text="comment", label="rude",
                      recipe=tmp_path / "r.yaml")
    assert (made.usable, made.usable_toxic, made.count, made.toxic) == (600, 100, 200, 100)
    recipe = load_recipe(tmp_path / "r.yaml")
    assert (recipe.data.texts.count, recipe.data.texts.toxic_share) == (200, 0.5)
    assert recipe.name == "r"


def test_the_data_step_makes_what_was_foretold(tmp_path: Path) -> None:
    made = quickstart(_table(tmp_path / "c.csv", 90, 30), text="comment", label="rude", recipe=tmp_path / "r.yaml")
    data = prepare_data(load_recipe(made.recipe), output=tmp_path / "data")
    assert (data.counts["texts"], data.toxic_texts) == (made.count, made.toxic) == (120, 90)


def test_without_labels_a_scorer_says_how_many_are_toxic(tmp_path: Path) -> None:
    made = quickstart(_table(tmp_path / "c.csv", 80, 240), text="comment", label=None, recipe=tmp_path / "r.yaml")
    assert (made.usable_toxic, made.count, made.toxic) == (80, 320, 80)
    assert load_recipe(made.recipe).data.texts.label_column is None


@pytest.mark.parametrize(("gflops", "prompts"), [(160, 110), (80, 55), (40, 55), (640, 110)])
def test_a_slower_machine_gets_less_and_needs_longer(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gflops: float, prompts: int) -> None:
    monkeypatch.setattr(module, "matmul_gflops", lambda: gflops)
    made = quickstart(_table(tmp_path / "c.csv", 4000, 4000), text="comment", label="rude", recipe=tmp_path / "r.yaml")
    assert load_recipe(made.recipe).data.prompts.evaluation_count == prompts
    assert made.count * 160 / gflops == pytest.approx(module._MOST_TEXT_SECONDS / module._SECONDS_A_TEXT, rel=0.02)
    assert made.minutes == pytest.approx((module._RUN_SECONDS * prompts / 110 * 160 / gflops
                                          + module._MOST_TEXT_SECONDS) / 60, abs=1)


def test_too_few_toxic_texts_are_counted_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(DetoxError, match="22 of 82 usable texts are toxic, 38 too few"):
        quickstart(_table(tmp_path / "c.csv", 22, 60), text="comment", label="rude", recipe=tmp_path / "r.yaml")
    assert [path.name for path in tmp_path.iterdir()] == ["c.csv"]


def test_a_wrong_column_is_named_with_those_that_are_there(tmp_path: Path) -> None:
    with pytest.raises(DetoxError, match=r"(?s)'text' is missing.*comment"):
        quickstart(_table(tmp_path / "c.csv", 80, 80), text="text", label=None, recipe=tmp_path / "r.yaml")


def test_an_existing_recipe_stays(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("mine")
    with pytest.raises(UsageError, match="exists already"):
        quickstart(_table(tmp_path / "c.csv", 80, 80), text="comment", label="rude", recipe=tmp_path / "r.yaml")
    assert (tmp_path / "r.yaml").read_text() == "mine"
