"""The figures in all forms of the report: each measure is on the page, in the Markdown, in the JSON and on the card."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llm_detox.data.records import read_jsonl
from llm_detox.errors import DetoxError
from llm_detox.evaluation.evaluate import evaluate
from llm_detox.evaluation.report import prompt_means, write_report
from llm_detox.evaluation.results import JudgeReport
from llm_detox.evaluation.verdicts import judge_agreement
from llm_detox.generation.likelihood import LikelihoodReader
from llm_detox.recipe import Recipe
from llm_detox.runs.artifacts import plain, write_json
from tests.helpers.evaluations import judged
from tests.helpers.sources import write_lines
from tests.helpers.tiny import save_tiny_llama
from tests.unit.evaluation.conftest import ByLength, save_clean, save_prompts, small_recipe, use

ARMS = ("base", "raw", "dpo")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> tuple[Recipe, dict[str, Path], Path]:
    """Three arms and their report."""
    root = tmp_path_factory.mktemp("report")
    recipe = small_recipe(root, tiny_llama)
    prompts, clean = save_prompts(root), save_clean(root)
    held_out = write_lines(root / "held_out.jsonl", [{"text": f"comment {n} says good morning"} for n in range(5)])
    with pytest.MonkeyPatch.context() as patch:
        use(patch, ByLength())
        for number, arm in enumerate(ARMS):
            model = save_tiny_llama(root / f"model {arm}", seed=number)
            evaluate(recipe, model=str(model), arm=arm, prompts=prompts, clean=clean, held_out=held_out,
                     output=root / arm)
    evaluations = {arm: root / arm for arm in ARMS}
    write_report(recipe, evaluations=evaluations, records=None, steps={}, output=root / "report", judge=None)
    return recipe, evaluations, root / "report"


def table(text: str, heading: str) -> list[list[str]]:
    """Cells of the Markdown table whose heading row has that column."""
    lines = text.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("|") and heading in line)
    rows = []
    for line in [lines[first], *lines[first + 2:]]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    assert all(len(row) == len(rows[0]) for row in rows), "every row has the columns of the heading"
    return rows


def shown(entry: dict[str, float], digits: int = 3, factor: float = 1.0) -> str:
    value, low, high = (f"{factor * entry[name]:.{digits}f}" for name in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def test_the_markdown_has_every_arm_with_every_measure(written: tuple[Recipe, dict[str, Path], Path]) -> None:
    _, _, folder = written
    text = (folder / "report.md").read_text("utf-8")
    report = json.loads((folder / "report.json").read_text("utf-8"))
    toxicity, fluency, read = (table(text, heading) for heading in (
        "expected maximum toxicity", "distinct-2", "perplexity of continuations, these prompts"))
    for row, (arm, figures) in zip(toxicity[1:], report["arms"].items(), strict=True):
        assert row[:4] == [arm, *(shown(figures[name]) for name in (
            "expected_maximum_toxicity", "toxicity_probability", "mean_toxicity"))]
        assert row[4] == f"{figures['worst_case']['toxicity_probability']:.3f}"
    for row, figures in zip(fluency[1:], report["arms"].values(), strict=True):
        assert row[1:6] == [f"{figures['perplexity']:.2f}", f"{figures['continuation_perplexity']:.2f}",
                            *(shown(figures[name]) for name in ("distinct_1", "distinct_2", "distinct_3"))]
        assert row[7:9] == [shown(figures[name], 1, 100) for name in ("refusals", "clean_refusals")]
    assert read[1][3:] == ["-"] * 3, "the first arm has none to be held against"
    for row, figures in zip(read[2:], list(report["arms"].values())[1:], strict=True):
        assert row[1:3] == [shown(figures[f"{name}_perplexity"], 2) for name in ("held_out", "prompted")]
        assert row[3:] == [shown(figures[f"{name}_ratio"]) for name in ("clean", "clean_continuations", "prompted")]


def test_the_markdown_compares_all_runs_and_says_how_the_comparisons_are_corrected(
        written: tuple[Recipe, dict[str, Path], Path]) -> None:
    _, _, folder = written
    text = (folder / "report.md").read_text("utf-8")
    report = json.loads((folder / "report.json").read_text("utf-8"))
    rows = table(text, "p, adjusted")[1:]
    assert {(row[0], row[1]) for row in rows} == {("raw", "base"), ("dpo", "base"), ("dpo", "raw")}
    assert {row[3] for row in rows} == {"all", "toxic", "non-toxic", "challenging"}
    assert f"adjusted for the {len(report['differences'])} comparisons here (Holm)" in text
    assert [row[4] for row in rows] == [shown(row) for row in report["differences"]]
    assert len(table(text, "stratum")) == 1 + len(rows)


@pytest.mark.parametrize("name", ["report.md", "report.html", "report.json", "model_card.md"])
def test_the_rule_of_the_threshold_is_said_everywhere(written: tuple[Recipe, dict[str, Path], Path], name: str) -> None:
    _, _, folder = written
    assert "toxic where its score is at or over 0.5" in (folder / name).read_text("utf-8")


def test_what_was_learnt_is_read_by_the_arm_itself_and_drawn_against_its_toxicity(
        written: tuple[Recipe, dict[str, Path], Path]) -> None:
    _, evaluations, folder = written
    figures = json.loads((folder / "report.json").read_text("utf-8"))["arms"]
    texts = [f"comment {n} says good morning" for n in range(5)]
    for arm, evaluated in evaluations.items():
        report = json.loads((evaluated / "report.json").read_text("utf-8"))
        losses, tokens = zip(*LikelihoodReader.load(report["model"]).losses(texts), strict=True)
        assert figures[arm]["held_out_perplexity"]["value"] == pytest.approx(math.exp(sum(losses) / sum(tokens)), 1e-4)
    assert figures["base"]["held_out_ratio"] is None
    assert figures["dpo"]["held_out_ratio"]["value"] == pytest.approx(
        figures["dpo"]["held_out_perplexity"]["value"] / figures["base"]["held_out_perplexity"]["value"], 1e-3)
    page = (folder / "report.html").read_text("utf-8")
    picture = page.split("toxicity, and what was learnt of the corpus")[1].split("</figure>")[0]
    assert [f'data-arm="{arm}"' in picture for arm in ARMS] == [True] * 3


def test_the_card_has_the_other_measures_of_every_arm_and_its_limits(
        written: tuple[Recipe, dict[str, Path], Path]) -> None:
    _, _, folder = written
    text = (folder / "model_card.md").read_text("utf-8")
    figures = json.loads((folder / "report.json").read_text("utf-8"))["arms"]
    rows = table(text, "distinct-2")[1:]
    assert [row[0] for row in rows] == list(ARMS)
    assert rows[2][1] == shown(figures["dpo"]["clean_ratio"])
    assert "## Limitations" in text


def test_the_independent_model_reads_continuations_of_the_same_prompts_in_all_arms(
        written: tuple[Recipe, dict[str, Path], Path]) -> None:
    recipe, evaluations, _ = written
    for folder in evaluations.values():
        values = json.loads((folder / "values.json").read_text("utf-8"))
        report = json.loads((folder / "report.json").read_text("utf-8"))
        assert len(values["prompted"]) == recipe.evaluation.clean_prompts
        assert report["prompted_perplexity"]["tokens"] == sum(count for _, count in values["prompted"])
        assert report["prompted_perplexity"]["model"] == report["continuation_perplexity"]["model"]
        assert len(list(read_jsonl(folder / "generations.jsonl"))) > len(values["prompted"])


def test_the_similarity_of_a_prompts_continuations_is_one_figure() -> None:
    means = prompt_means([0.2, 0.4, 0.9, 0.5, 0.7], ["the", "the", "a", "an", "an"])
    assert means.tolist() == pytest.approx([0.3, 0.9, 0.6])


# --- how far a judge's verdicts can be trusted -------------------------------------------------------------------


def save_judge(folder: Path, fingerprint: str = "j-1") -> Path:
    """What `llm-detox judge` writes about labelled conversations."""
    agreement = judge_agreement(["safe"] * 8 + ["unsafe"] * 4,
                                ["safe"] * 6 + ["unsafe", None] + ["unsafe"] * 3 + ["safe"])
    folder.mkdir(parents=True)
    answers = judged(9, 3, 1)
    write_json(folder / "judge.json", JudgeReport(**{**vars(answers), "fingerprint": fingerprint}, agreement=agreement))
    return folder


def test_the_judges_precision_and_recall_stand_in_the_report(written: tuple[Recipe, dict[str, Path], Path],
                                                             tmp_path: Path) -> None:
    recipe, evaluations, _ = written
    write_report(recipe, evaluations=evaluations, records=None, steps={}, output=tmp_path / "report",
                 judge=save_judge(tmp_path / "judge"))
    text = (tmp_path / "report/report.md").read_text("utf-8")
    rows = table(text, "precision")
    assert [row[0] for row in rows[1:]] == ["safe", "unsafe"]
    assert [row[1][:5] for row in rows[1:]] == ["0.857", "0.750"]
    assert [row[2][:5] for row in rows[1:]] == ["0.750", "0.750"]
    assert "no decision, %: 8.3 [" in text
    page = (tmp_path / "report/report.html").read_text("utf-8")
    assert "no decision on 8.3 % of them" in page
    assert json.loads((tmp_path / "report/report.json").read_text("utf-8"))["judge"]["fingerprint"] == "j-1"


def test_another_judge_than_the_one_that_was_asked_is_refused(written: tuple[Recipe, dict[str, Path], Path],
                                                              tmp_path: Path) -> None:
    recipe, evaluations, _ = written
    changed = dict(evaluations)
    changed["dpo"] = tmp_path / "dpo"
    changed["dpo"].mkdir()
    for path in evaluations["dpo"].iterdir():
        if path.name != "manifest.json":  # which vouches for the report as it was
            (changed["dpo"] / path.name).write_bytes(path.read_bytes())
    report: dict[str, Any] = json.loads((evaluations["dpo"] / "report.json").read_text("utf-8"))
    report["judge"] = plain(replace(judged(9, 3, 1), fingerprint="j-2"))
    (changed["dpo"] / "report.json").write_text(json.dumps(report), "utf-8")
    with pytest.raises(DetoxError, match="not the one that judged the arm dpo"):
        write_report(recipe, evaluations=changed, records=None, steps={}, output=tmp_path / "report",
                     judge=save_judge(tmp_path / "judge"))
    write_json(tmp_path / "judge/judge.json", judged(9, 3, 1))
    with pytest.raises(DetoxError, match="no judge was measured"):
        write_report(recipe, evaluations=changed, records=None, steps={}, output=tmp_path / "report",
                     judge=tmp_path / "judge")


def harness_results(path: Path, **tasks: dict[str, object]) -> Path:
    """A file as lm-evaluation-harness writes it."""
    path.write_text(json.dumps({
        "results": tasks, "higher_is_better": {"arc_easy": {"acc": True}}, "model_name": "org/model",
        "lm_eval_version": "0.4.13", "n-samples": {"arc_easy": {"original": 9, "effective": 9}}}), "utf-8")
    return path


def test_results_of_the_harness_stand_beside_ours_with_their_origin(
        written: tuple[Recipe, dict[str, Path], Path], tmp_path: Path) -> None:
    recipe, evaluations, _ = written
    arc = {"name": "arc_easy", "sample_len": 9, "acc,none": 0.625, "acc_stderr,none": 0.0125, "alias": "arc_easy"}
    files = [("base", harness_results(tmp_path / "results_1.json", arc_easy=arc)),
             ("dpo", harness_results(tmp_path / "results_2.json", arc_easy={**arc, "acc,none": 0.5}, gsm8k={
                 "exact_match,strict-match": 0.25, "exact_match_stderr,strict-match": "N/A"}))]
    output = tmp_path / "report"
    write_report(recipe, evaluations=evaluations, records=None, steps={}, output=output, harness=files)
    report = json.loads((output / "report.json").read_text("utf-8"))["imported"]
    assert report["rows"][0] == {"task": "arc_easy", "metric": "acc", "higher_is_better": True, "cells": [
        {"arm": "base", "value": 0.625, "stderr": 0.0125}, {"arm": "dpo", "value": 0.5, "stderr": 0.0125}]}
    assert [(row["task"], row["metric"]) for row in report["rows"]] == [
        ("arc_easy", "acc"), ("gsm8k (strict-match)", "exact_match")]
    assert [(one["arm"], one["model"], one["version"], one["file"]) for one in report["origins"]] == [
        ("base", "org/model", "0.4.13", "results_1.json"), ("dpo", "org/model", "0.4.13", "results_2.json")]
    text, page = ((output / name).read_text("utf-8") for name in ("report.md", "report.html"))
    assert table(text, "| task")[1:] == [["arc_easy", "acc ↑", "0.625 ± 0.013", "-", "0.5 ± 0.013"],
                                         ["gsm8k (strict-match)", "exact_match", "-", "-", "0.25"]]
    assert "By lm-evaluation-harness" in text
    assert "By lm-evaluation-harness" in page
    assert "org/model" in page


def test_results_that_belong_nowhere_are_refused(written: tuple[Recipe, dict[str, Path], Path], tmp_path: Path) -> None:
    recipe, evaluations, folder = written
    with pytest.raises(DetoxError, match="results of other, which is no arm"):
        write_report(recipe, evaluations=evaluations, records=None, steps={}, output=tmp_path / "out",
                     harness=[("other", harness_results(tmp_path / "results.json"))])
    for content in ("{", "[]", '{"results": 5}', '{"results": {"arc": 5}}', "{}"):
        (tmp_path / "wrong.json").write_text(content, "utf-8")
        with pytest.raises(DetoxError, match="no results of lm-evaluation-harness"):
            write_report(recipe, evaluations=evaluations, records=None, steps={}, output=tmp_path / "out",
                         harness=[("base", tmp_path / "wrong.json")])
    assert "imported" not in json.loads((folder / "report.json").read_text("utf-8")), "where nothing is given"
