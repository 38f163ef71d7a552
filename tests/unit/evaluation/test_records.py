"""What comes in and what goes out: the original's records, scores of another scorer, and how much is held at once."""

from __future__ import annotations

import json
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from llm_detox.data.records import read_jsonl
from llm_detox.errors import DetoxError
from llm_detox.evaluation import continuations as continuations_module
from llm_detox.evaluation.continuations import Clock, Prompts, score_continuations
from llm_detox.evaluation.evaluate import evaluate
from llm_detox.evaluation.fluency import first_continuations
from llm_detox.generation import generators as continuers_module
from llm_detox.recipe import Recipe
from llm_detox.runs.folders import step_folder
from llm_detox.scoring.readings import VERSION
from tests.unit.evaluation.conftest import ByLength, use

ATTRIBUTES = ("toxicity", "severe_toxicity", "profanity", "sexually_explicit", "identity_attack", "flirtation",
              "threat", "insult")


def part(text: str, toxicity: float | None) -> dict[str, Any]:
    return {"text": text, **dict.fromkeys(ATTRIBUTES, toxicity)}


def original_record(number: int, text: str, toxicity: float | None, texts: Sequence[str] = ()) -> dict[str, Any]:
    """A line of RealToxicityPrompts, with the generations of one of its `*.jsonl` files where there are texts."""
    record = {"filename": f"{number}.txt", "begin": 340, "end": 564, "challenging": number == 3,
              "prompt": part(text, toxicity), "continuation": part(" and so on", 0.1)}
    return {**record, "generations": [part(one, 0.2) for one in texts]} if texts else record


def write(path: Path, records: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    return path


ORIGINAL = [("So I said", 0.1), ("You are such a", 0.8), ("So I said", 0.1), ("And then they all", None)]


def score(recipe: Recipe, prompts: Path, output: Path, *generations: Path, model: str = "elsewhere") -> dict[str, Any]:
    evaluate(recipe, model=model, arm="x", prompts=prompts, clean=None, output=output, generations=generations)
    found: dict[str, Any] = json.loads((output / "values.json").read_text("utf-8"))
    return found


def test_the_originals_records_without_ids_are_read_and_scored_anew(recipe: Recipe, tmp_path: Path,
                                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two records with the same prompt each has its own continuations; scores stored by others are left."""
    use(monkeypatch, ByLength())
    prompts = write(tmp_path / "prompts.jsonl", [original_record(n, *one) for n, one in enumerate(ORIGINAL)])
    stored = write(tmp_path / "prompted.jsonl", [
        original_record(n, *one, texts=["x" * (6 * (n + 1))] * 3) for n, one in enumerate(ORIGINAL)])
    values = score(recipe, prompts, tmp_path / "out", stored)
    assert len(set(values["ids"])) == 4
    assert [one["mean"] for one in values["scores"]] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert values["strata"] == [["all", "non-toxic"], ["all", "toxic"], ["all", "non-toxic"],
                                ["all", "unknown", "challenging"]]


def test_what_is_written_is_the_originals_record_and_reads_back_as_the_same_evaluation(
        recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, ByLength())
    originals = [original_record(n, *one) for n, one in enumerate(ORIGINAL)]
    prompts = write(tmp_path / "prompts.jsonl", originals)
    values = score(recipe, prompts, tmp_path / "out", model=recipe.model.source)
    written = list(read_jsonl(tmp_path / "out/generations.jsonl"))
    for record, original in zip(written, originals, strict=True):
        assert {name: record[name] for name in original} == original
        assert set(record) - set(original) == {"id", "scorer", "generations"}
    bare = write(tmp_path / "bare.jsonl", [
        {name: value for name, value in record.items() if name not in ("id", "scorer")} for record in written])
    assert score(recipe, bare, tmp_path / "again", bare) == values
    assert score(recipe, prompts, tmp_path / "once more", tmp_path / "out/generations.jsonl") == values


# --- going on with another scorer --------------------------------------------------------------------------------


class Halved(ByLength):
    """Another scorer, with other scores; or the first one, which is gone after some batches."""

    def __init__(self, fingerprint: str, factor: float, batches: int = 10**6) -> None:
        super().__init__(fingerprint)
        self.factor, self.left = factor, batches

    def score_batch(self, texts: Sequence[str]) -> Sequence[Mapping[str, float] | None]:
        self.left -= 1
        if self.left < 0:
            raise ConnectionError("the scorer is gone")
        return [{"toxicity": self.factor * min(len(text) / 60, 1.0), "insult": 0.1} for text in texts]


def test_another_scorer_scores_what_was_drawn_and_no_score_of_the_first_one_stays(
        recipe: Recipe, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The settings are the same: a package that came in another version, say."""
    monkeypatch.setattr(continuations_module, "SCORED_AT_ONCE", 3)
    monkeypatch.setattr("llm_detox.scoring.base._FAILURES_IN_A_ROW", 1)

    def run(output: Path) -> None:
        evaluate(recipe, model=recipe.model.source, arm="base", prompts=prompts, clean=None, output=output)

    use(monkeypatch, Halved("new", 0.5))
    run(tmp_path / "whole")
    use(monkeypatch, Halved("old", 1.0, batches=5))
    with pytest.raises(DetoxError, match="the scorer is gone"):
        run(tmp_path / "broken")
    drawn: list[int] = []
    original = continuers_module.iterate_continuations
    monkeypatch.setattr(continuers_module, "iterate_continuations",
                        lambda model, tokenizer, texts, **options: drawn.append(len(texts)) or original(
                            model, tokenizer, texts, **options))
    use(monkeypatch, Halved("new", 0.5))
    run(tmp_path / "broken")
    assert drawn == [7], "the five prompts that the first run drew are not drawn again"
    assert {record["scorer"] for record in read_jsonl(tmp_path / "broken/generations.jsonl")} == {f"new-{VERSION}"}
    for name in ("generations.jsonl", "values.json"):
        assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


# --- memory ------------------------------------------------------------------------------------------------------


class Counted(str):
    """A text that is counted while it is alive."""

    alive = most = 0

    def __new__(cls, text: str) -> Counted:
        made = super().__new__(cls, text)
        Counted.alive += 1
        Counted.most = max(Counted.most, Counted.alive)
        weakref.finalize(made, cls._gone)
        return made

    @staticmethod
    def _gone() -> None:
        Counted.alive -= 1


class Draws:
    """Continuations that are counted."""

    name = "draws"

    def continuations(self, prompts: Sequence[str], *, k: int, sampling: Any, seed: int, keys: Sequence[str],
                      on_progress: Any = None) -> Iterator[tuple[int, list[str | None]]]:
        for index, prompt in enumerate(prompts):
            yield index, [Counted(f" {prompt} {number}") for number in range(k)]


def most_texts_alive(recipe: Recipe, folder: Path, count: int) -> int:
    """The most prompts and continuations that are held at once while so many prompts are evaluated."""
    path = write(folder / "prompts.jsonl", [original_record(n, f"prompt number {n}", 0.1) for n in range(count)])
    Counted.most = Counted.alive
    with step_folder(folder / "out", "evaluation", settings={}, inputs={"prompts": path}) as step:
        found = score_continuations(recipe.evaluation, recipe.seed, step, Prompts(path), Draws(), ByLength(), Clock())
        generations = step / "generations.jsonl"
        assert len(found.scores) == count
        assert len(first_continuations(generations, 5)) == 5
    return Counted.most


def test_texts_in_memory_do_not_grow_with_the_number_of_prompts(recipe: Recipe, tmp_path: Path,
                                                                monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(continuations_module, "_WINDOW", 30)
    monkeypatch.setattr(continuations_module, "SCORED_AT_ONCE", 12)
    plain = continuations_module.read_jsonl

    def counted(path: Path, **options: Any) -> Iterator[dict[str, Any]]:
        for record in plain(path, **options):
            yield {**record, "prompt": {**record["prompt"], "text": Counted(record["prompt"]["text"])}}

    monkeypatch.setattr(continuations_module, "read_jsonl", counted)
    folders = [tmp_path / "few", tmp_path / "many"]
    for folder in folders:
        folder.mkdir()
    few, many = most_texts_alive(recipe, folders[0], 40), most_texts_alive(recipe, folders[1], 400)
    assert 0 < many <= few < 40, "a window of ten prompts with some of their three continuations each"
