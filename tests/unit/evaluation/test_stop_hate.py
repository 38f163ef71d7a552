"""Stop-hate is measured on hate and on harmless messages, for the base, the system prompt alone and the tuned model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakSet

import pytest

from llm_detox.data.chats import Messages
from llm_detox.data.records import read_jsonl
from llm_detox.errors import UsageError
from llm_detox.evaluation import stop_hate as module
from llm_detox.evaluation.stop_hate import measure_refusals
from llm_detox.generation.chat import Answer
from llm_detox.recipe import Recipe
from llm_detox.scoring.base import ToxicityScorer
from tests.helpers.sources import make_sources

REFUSAL = "Let us end this talk."


class Hateful(ToxicityScorer):
    def __init__(self) -> None:
        super().__init__("hateful", "hateful-1", ("toxicity",))

    def score_batch(self, texts: Sequence[str]) -> Sequence[Mapping[str, float] | None]:
        return [{"toxicity": 0.9 if "hate" in text else 0.1} for text in texts]


class Model:
    """Hates along as the base, refuses everything with a system prompt, and refuses hate alone when tuned."""

    asked: int = 0
    lives: int = 10**6

    def __init__(self, name: str | None) -> None:
        self.name = name or "base"

    def answers(self, conversations: Sequence[Messages], *, seed: int, keys: Sequence[str],
                on_progress: Callable[[int], None] | None = None) -> Iterator[Answer]:
        for index, messages in enumerate(conversations):
            if Model.asked == Model.lives:
                raise ConnectionError("gone")
            Model.asked += 1
            text: str | None = "I hate them too" if "hate" in messages[-1]["content"] else "it leaves at noon"
            if messages[0]["role"] == "system":
                text = "I cannot engage with this conversation."
            elif self.name == "tuned" and "hate" in messages[-1]["content"]:
                text = None if messages[-1]["content"].endswith(" 3") else REFUSAL
            yield Answer(index, text)


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    values = make_sources(tmp_path / "sources")
    (tmp_path / "hate.csv").write_text(
        "text,label\n" + "".join(f"I hate group {n},hate\nI love group {n},nothate\n" for n in range(8)), "utf-8")
    (tmp_path / "benign.jsonl").write_text("".join(json.dumps({"messages": [
        {"role": "user", "content": f"when does train {n} leave"}, {"role": "assistant", "content": "at noon"},
        ]}) + "\n" for n in range(9)), "utf-8")
    values["stop_hate"] = {
        "hate": [{"source": str(tmp_path / "hate.csv"), "column": "text", "where": {"label": "hate"}}],
        "benign": [str(tmp_path / "benign.jsonl")], "count": 8}
    values["detoxify"] = {"refusal": REFUSAL}
    Model.asked, Model.lives = 0, 10**6
    monkeypatch.setattr(module, "open_chat", lambda how, default: Model(how.model))
    monkeypatch.setattr(module, "load_scorer", lambda _: Hateful())
    return Recipe.model_validate(values)


def test_every_arm_is_measured_on_hate_and_on_harmless_messages(tmp_path: Path, recipe: Recipe) -> None:
    arms = measure_refusals(recipe, tuned="tuned", trained_on=None, output=tmp_path / "out").arms
    assert {arm: figures.hateful.value for arm, figures in arms.items()} == {"base": 1, "prompt": 0, "tuned": 0}
    assert {arm: (figures.hate_refusals.value, figures.benign_refusals.value)
            for arm, figures in arms.items()} == {"base": (0, 0), "prompt": (1, 1), "tuned": (1, 0)}
    assert (arms["tuned"].unscored, arms["tuned"].hateful.of, arms["tuned"].hate_refusals.missing) == (
        1, 7, 1)
    rows = list(read_jsonl(tmp_path / "out" / "answers.jsonl"))
    assert len(rows) == 3 * 16
    assert {row["messages"][0]["role"] for row in rows} == {"user"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"answers.jsonl", "refusals.json", "manifest.json"}


def test_the_prompt_only_experiment_needs_no_tuned_model(tmp_path: Path, recipe: Recipe) -> None:
    with pytest.raises(UsageError, match="the tuned arm needs its model"):
        measure_refusals(recipe, tuned=None, trained_on=None, output=tmp_path / "out")
    alone = recipe.model_copy(update={"stop_hate": recipe.stop_hate.model_copy(update={"arms": ["base", "prompt"]})})
    found = measure_refusals(alone, tuned=None, trained_on=None, output=tmp_path / "out")
    assert list(found.arms) == ["base", "prompt"]


def test_a_model_leaves_the_memory_before_the_next_one_is_loaded(
        tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    living: WeakSet[Model] = WeakSet()
    met: list[int] = []

    def opened(how: Any, default: str) -> Model:
        met.append(len(living))
        model = Model(how.model)
        living.add(model)
        return model

    monkeypatch.setattr(module, "open_chat", opened)
    measure_refusals(recipe, tuned="tuned", trained_on=None, output=tmp_path / "out")
    assert met == [0, 0]


def test_what_was_trained_on_is_not_asked(tmp_path: Path, recipe: Recipe) -> None:
    trained = tmp_path / "train.jsonl"
    trained.write_text("".join(json.dumps(record) + "\n" for record in (
        {"messages": [{"role": "user", "content": "i HATE group 1!"}]}, {"prompt": "I hate group 2", "completion": "x"},
        {"text": "when does train 4 leave?"})), "utf-8")
    measure_refusals(recipe, tuned="tuned", trained_on=trained, output=tmp_path / "out")
    asked = {row["messages"][0]["content"] for row in read_jsonl(tmp_path / "out" / "answers.jsonl")}
    assert asked == {f"I hate group {n}" for n in (0, 3, 4, 5, 6, 7)} | {
        f"when does train {n} leave" for n in (0, 1, 2, 3, 5, 6, 7, 8)}


def test_an_ended_run_goes_on_with_the_answers_that_lack(tmp_path: Path, recipe: Recipe) -> None:
    def run(name: str) -> Any:
        return measure_refusals(recipe, tuned="tuned", trained_on=None, output=tmp_path / name)

    Model.lives = 21
    with pytest.raises(ConnectionError):
        run("out")
    Model.lives = 10**6
    assert run("out") == run("whole")
    assert Model.asked == 2 * 48
    assert (tmp_path / "out" / "answers.jsonl").read_text() == (tmp_path / "whole" / "answers.jsonl").read_text()
