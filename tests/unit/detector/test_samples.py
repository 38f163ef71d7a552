"""Live texts are kept by chance, within a bound, without their words unless asked for, and `evaluate` reads them."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from llm_detox.detector.samples import LiveSamples, live_samples
from llm_detox.detector.scorer_detector import ScorerDetector
from llm_detox.errors import UsageError
from llm_detox.evaluation import evaluate as evaluate_module
from llm_detox.evaluation.evaluate import evaluate
from llm_detox.evaluation.results import read_evaluation
from llm_detox.recipe.files import PACKAGED_RECIPE, load_recipe
from tests.helpers.detecting import BadWords, asked, serving


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_a_text_is_kept_only_where_that_is_asked_for(tmp_path: Path) -> None:
    LiveSamples(tmp_path / "bare.jsonl", 1.0).keep("my secret", {"toxicity": 0.7, "withheld": True, "text": "secret"})
    [bare] = records(tmp_path / "bare.jsonl")
    assert "secret" not in (tmp_path / "bare.jsonl").read_text("utf-8")
    assert bare["generations"] == [{"text": None, "toxicity": 0.7, "withheld": True}]
    LiveSamples(tmp_path / "whole.jsonl", 1.0, with_text=True).keep("said \ud800 so", {})
    [whole] = records(tmp_path / "whole.jsonl")
    assert whole["generations"] == [{"text": "said ? so"}], "a half of a character does not stop the answer"
    assert stat.S_IMODE((tmp_path / "whole.jsonl").stat().st_mode) == 0o600


def test_about_the_share_is_kept(tmp_path: Path) -> None:
    samples = LiveSamples(tmp_path / "live.jsonl", 0.1)
    for _ in range(2000):
        samples.keep("a", {})
    assert 120 < len(records(tmp_path / "live.jsonl")) < 290  # 200 with a standard deviation of 13


def test_the_newest_are_kept_within_the_bound(tmp_path: Path) -> None:
    samples = LiveSamples(tmp_path / "live.jsonl", 1.0, with_text=True, most_bytes=4000)
    for number in range(100):
        samples.keep(f"text {number}", {})
    assert {path.name for path in tmp_path.iterdir()} == {"live.jsonl", "live.jsonl.1"}
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 4000
    kept = [one["generations"][0]["text"] for name in ("live.jsonl.1", "live.jsonl")
            for one in records(tmp_path / name)]
    assert kept == [f"text {number}" for number in range(100 - len(kept), 100)]


def test_a_file_that_cannot_be_written_costs_no_answer_and_is_said_once(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "live.jsonl").mkdir()
    samples = LiveSamples(tmp_path / "live.jsonl", 1.0)
    samples.keep("a", {})
    samples.keep("b", {})
    assert capsys.readouterr().err.count("live samples cannot be written") == 1


def test_options_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    assert live_samples(None, None, False) is None
    for given in ((None, 0.5, False), (None, None, True), (tmp_path / "a", 0.0, False), (tmp_path / "a", 2.0, False),
                  (tmp_path / "none/a", None, False)):
        with pytest.raises(UsageError):
            live_samples(*given)


def test_what_a_detector_kept_is_evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, texts = tmp_path / "live.jsonl", ["A fine day.", "You damn fool!", "What?"]
    with serving({"toxicity": ScorerDetector(BadWords())}, samples=LiveSamples(path, 1.0, with_text=True)) as url:
        assert asked(url, {"contents": texts})[0] == 200
    assert [one["generations"][0] for one in records(path)] == [
        {"text": "A fine day.", "detector": "toxicity"},
        {"text": "You damn fool!", "detector": "toxicity", "toxicity": 1.0},
        {"text": "What?", "detector": "toxicity", "unscored": 1.0}]
    monkeypatch.setattr(evaluate_module, "load_scorer", lambda section: BadWords())
    recipe = load_recipe(PACKAGED_RECIPE, ["evaluation.continuations=1", "scoring.others=[]"])
    evaluate(recipe, model="live", arm="live", prompts=path, clean=None, output=tmp_path / "out", generations=[path])
    report = read_evaluation(tmp_path / "out").report
    assert (report.prompts, report.unscored) == (3, 1)
    assert report.toxicity_probability
    assert report.toxicity_probability.value == 0.5
