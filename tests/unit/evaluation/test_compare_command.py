"""`llm-detox evaluate compare A B`: differences as a table or as JSON, and nothing for what was not measured alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llm_detox.cli import main
from llm_detox.evaluation.compare import compare
from llm_detox.evaluation.intervals import Bootstrap
from llm_detox.evaluation.metrics import METRICS, WordRuns, prompt_score, summarise
from llm_detox.evaluation.results import EvaluationValues, read_evaluation, write_evaluation
from llm_detox.runs.artifacts import plain
from tests.helpers.evaluations import report_of


def save_evaluation(folder: Path, arm: str, level: float, **comparable: Any) -> str:
    """An evaluation folder of forty prompts, as `evaluate` writes it; returns its path."""
    random = np.random.default_rng(0)
    scores = [prompt_score([level * share for share in random.random(4).tolist()], 0.5) for _ in range(40)]
    strata = [["all", "toxic" if number % 2 else "non-toxic"] for number in range(40)]
    whole = summarise(scores, [False] * 40, Bootstrap(1000, 0.95, 1))
    report = report_of(arm, scores, comparable={"scorer": "s-1", **comparable},
                       strata=dict.fromkeys(("all", "toxic", "non-toxic"), whole))
    folder.mkdir()
    write_evaluation(folder, report, EvaluationValues(
        ids=[str(number) for number in range(40)], strata=strata, over={}, scores=scores,
        word_runs=[WordRuns(0, 0, 0, 0)] * 40))
    return str(folder)


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr("sys.argv", ["llm-detox", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


@pytest.mark.parametrize("words", [("evaluate", "compare"), ("compare",)])
def test_both_spellings_give_the_paired_differences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                    capsys: pytest.CaptureFixture[str], words: tuple[str, ...]) -> None:
    base, dpo = save_evaluation(tmp_path / "a", "base", 1.0), save_evaluation(tmp_path / "b", "dpo", 0.6)
    assert run(monkeypatch, *words, base, dpo, "--samples", "1000", "--seed", "3", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    arms = {"base": read_evaluation(Path(base)), "dpo": read_evaluation(Path(dpo))}
    assert found["differences"] == plain(compare(arms, Bootstrap(1000, 0.95, 3)))
    assert {(row["metric"], row["stratum"]) for row in found["differences"]} == {
        (metric, stratum) for metric in METRICS for stratum in ("all", "toxic", "non-toxic")}
    assert all(row["value"] < 0 for row in found["differences"] if row["metric"] == "mean_toxicity")
    assert found["arms"]["dpo"]["mean_toxicity"] == plain(arms["dpo"].report.mean_toxicity)


def test_the_table_holds_every_run_and_says_what_its_p_values_are_adjusted_for(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Runs of one arm go by their folders."""
    folders = [save_evaluation(tmp_path / name, arm, level) for name, arm, level in
               (("one", "base", 1.0), ("two", "dpo", 0.9), ("three", "dpo", 0.6))]
    assert run(monkeypatch, "evaluate", "compare", *folders) == 0
    table = capsys.readouterr().out
    assert all(name in table for name in ("base", folders[1], folders[2]))
    assert "adjusted for the 27 comparisons (Holm)" in table  # three pairs, three metrics, three strata


@pytest.mark.parametrize(("comparable", "problem"), [
    ({"scorer": "s-2"}, "judged by different scorers (s-1 and s-2)"), ({"seed": 2}, "differ in seed")])
def test_runs_that_were_not_measured_alike_are_refused(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], comparable: dict[str, Any],
        problem: str) -> None:
    base = save_evaluation(tmp_path / "a", "base", 1.0)
    other = save_evaluation(tmp_path / "b", "dpo", 0.6, **comparable)
    assert run(monkeypatch, "evaluate", "compare", base, other) == 1
    assert problem in capsys.readouterr().err


def test_one_folder_or_one_that_is_missing_is_wrong_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                        capsys: pytest.CaptureFixture[str]) -> None:
    base = save_evaluation(tmp_path / "a", "base", 1.0)
    assert run(monkeypatch, "evaluate", "compare", base) == 2
    assert "two evaluations or more" in capsys.readouterr().err
    assert run(monkeypatch, "evaluate", "compare", base, str(tmp_path / "none")) == 2
    assert "does not exist" in capsys.readouterr().err
