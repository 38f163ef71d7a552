"""The evaluate and report steps, run whole on tiny models: files, resuming, failing scorers, escaping, the card."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from llm_detox.data.records import read_jsonl
from llm_detox.errors import DetoxError
from llm_detox.evaluation import continuations as continuations_module
from llm_detox.evaluation.evaluate import evaluate
from llm_detox.evaluation.report import write_report
from llm_detox.evaluation.results import EvaluationSummary
from llm_detox.generation import generators as continuers_module
from llm_detox.recipe import Recipe
from llm_detox.runs.artifacts import plain
from llm_detox.runs.folders import read_manifest
from tests.helpers.tiny import save_tiny_llama
from tests.unit.evaluation.conftest import ByLength, use


class Dies(ByLength):
    """Scores some batches, then is gone for good."""

    def __init__(self, batches: int) -> None:
        super().__init__()
        self.left = batches

    def score_batch(self, texts: Sequence[str]) -> Sequence[Mapping[str, float] | None]:
        self.left -= 1
        if self.left < 0:
            raise ConnectionError("the scorer is gone")
        return super().score_batch(texts)


def run(recipe: Recipe, prompts: Path, clean: Path | None, output: Path, arm: str = "base",
        model: Path | None = None) -> EvaluationSummary:
    return evaluate(recipe, model=str(model or recipe.model.source), arm=arm, prompts=prompts, clean=clean,
                    output=output)


def test_an_evaluation_writes_what_its_readers_need(recipe: Recipe, prompts: Path, clean: Path, tmp_path: Path,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, ByLength())
    result = run(recipe, prompts, clean, tmp_path / "out")
    report = json.loads((tmp_path / "out/report.json").read_text())
    for metric in ("expected_maximum_toxicity", "toxicity_probability", "mean_toxicity"):
        assert report[metric]["low"] <= report[metric]["value"] <= report[metric]["high"]
        assert plain(getattr(result, metric)) == report[metric]
    assert set(report["strata"]) == {"all", "toxic", "non-toxic", "challenging"}
    assert report["perplexity"] > 1
    assert "names no fluency model" in report["continuation_perplexity"]["note"]
    assert sum(report["histogram"]) + report["unscored"] == 36
    records = list(read_jsonl(tmp_path / "out/generations.jsonl"))
    assert [record["id"] for record in records] == [f"p{n}" for n in range(12)]
    assert records[0]["filename"] == "0.txt"
    assert records[0]["continuation"] == {"text": " all"}
    assert all(len(record["generations"]) == 3 for record in records)
    assert {"text", "toxicity", "insult"} == set(records[0]["generations"][0])
    means = [[g["toxicity"] for g in record["generations"] if g["toxicity"] is not None] for record in records]
    assert report["mean_toxicity"]["value"] == pytest.approx(
        sum(sum(row) / len(row) for row in means if row) / sum(bool(row) for row in means))
    words = [[g["text"].split() for g in record["generations"]] for record in records]
    shares = [len({word for text in texts for word in text}) / sum(map(len, texts)) for texts in words if any(texts)]
    assert report["distinct_1"]["value"] == pytest.approx(sum(shares) / len(shares))


def test_continuations_of_a_clean_prompt_are_resampled_together(recipe: Recipe, prompts: Path, clean: Path,
                                                               tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, ByLength())
    evaluation = recipe.evaluation.model_copy(update={"clean_continuations": 3})
    run(recipe.model_copy(update={"evaluation": evaluation}), prompts, clean, tmp_path / "out")
    openings = recipe.evaluation.clean_prompts
    report = json.loads((tmp_path / "out/report.json").read_text())
    rows = json.loads((tmp_path / "out/values.json").read_text())["clean_continuations"]
    assert len(list(read_jsonl(tmp_path / "out/clean_generations.jsonl"))) == 3 * openings
    assert len(rows) == openings
    assert sum(count for _, count in rows) == report["continuation_perplexity"]["tokens"]
    assert (report["clean_refusals"]["of"], report["clean_refusals"]["prompts"]) == (3 * openings, openings)


def test_a_broken_run_goes_on_and_ends_like_an_unbroken_one(recipe: Recipe, prompts: Path, clean: Path, tmp_path: Path,
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(continuations_module, "SCORED_AT_ONCE", 3)
    use(monkeypatch, ByLength())
    run(recipe, prompts, clean, tmp_path / "whole")
    use(monkeypatch, Dies(5))
    monkeypatch.setattr("llm_detox.scoring.base._FAILURES_IN_A_ROW", 1)
    with pytest.raises(DetoxError, match="the scorer is gone"):
        run(recipe, prompts, clean, tmp_path / "broken")
    assert not (tmp_path / "broken").exists()
    kept = (tmp_path / ".broken.part/drawn.jsonl").read_text().splitlines()
    assert len(kept) == 5
    with (tmp_path / ".broken.part/drawn.jsonl").open("ab") as file:
        file.write(b"\0" * 30 + b"\n")  # as after a power failure
    use(monkeypatch, ByLength())
    drawn: list[int] = []
    original = continuers_module.iterate_continuations
    monkeypatch.setattr(continuers_module, "iterate_continuations",
                        lambda model, tokenizer, texts, **options: drawn.append(len(texts)) or original(
                            model, tokenizer, texts, **options))
    run(recipe, prompts, clean, tmp_path / "broken")
    assert drawn == [7, 4]  # the prompts left, then the clean ones
    for name in ("generations.jsonl", "values.json"):
        assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_batch_that_fails_is_counted_and_never_scored_zero(recipe: Recipe, prompts: Path, tmp_path: Path,
                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    class FailsOnce(ByLength):
        calls = 0

        def score_batch(self, texts: Sequence[str]) -> Sequence[Mapping[str, float] | None]:
            self.calls += 1
            if self.calls == 2:
                raise TimeoutError("no answer in 30 s")
            return super().score_batch(texts)

    use(monkeypatch, FailsOnce())
    result = run(recipe, prompts, None, tmp_path / "out")
    assert result.unscored >= 16
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["unscored_reasons"]["TimeoutError: no answer in 30 s"] == 16
    scores = [g["toxicity"] for record in read_jsonl(tmp_path / "out/generations.jsonl") for g in record["generations"]]
    assert sum(score is None for score in scores) == result.unscored
    assert 0 not in scores


def test_a_scorer_that_never_answers_fails_the_run(recipe: Recipe, prompts: Path, tmp_path: Path,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent(ByLength):
        def score_batch(self, texts: Sequence[str]) -> Sequence[Mapping[str, float] | None]:
            return [None] * len(texts)

    use(monkeypatch, Silent())
    with pytest.raises(DetoxError, match="not one continuation could be scored"):
        run(recipe, prompts, None, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_fluency_model_that_is_not_installed_is_replaced_by_the_base_and_said(
        recipe: Recipe, prompts: Path, clean: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, ByLength())
    absent = "package://no-such-dist-here/model"
    recipe = recipe.model_copy(update={"evaluation": recipe.evaluation.model_copy(update={"fluency_model": absent})})
    run(recipe, prompts, clean, tmp_path / "out")
    fluency = json.loads((tmp_path / "out/report.json").read_text())["continuation_perplexity"]
    assert fluency["model"] == recipe.model.source
    assert "not installed" in fluency["note"]


# --- the report --------------------------------------------------------------------------------------------------


@pytest.fixture
def arms(recipe: Recipe, prompts: Path, clean: Path, tmp_path: Path,
         monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    use(monkeypatch, ByLength())
    other = save_tiny_llama(tmp_path / "other", seed=5)
    run(recipe, prompts, clean, tmp_path / "base")
    run(recipe, prompts, clean, tmp_path / "dpo", arm="dpo", model=other)
    return {"base": tmp_path / "base", "dpo": tmp_path / "dpo"}


HOSTILE = '</script><script>alert(1)</script><img src=x onerror="alert(2)">'


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.folded: list[str] = []
        self.shown: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "img", "br", "rect", "line", "circle", "path", "polyline", "i", "link"):
            self.open.append(f"{tag}.{dict(attributes).get('class')}")

    def handle_endtag(self, tag: str) -> None:
        if self.open and self.open[-1].startswith(f"{tag}."):
            self.open.pop()

    def handle_data(self, data: str) -> None:
        (self.folded if "details.toxic" in self.open else self.shown).append(data)


def save_records(folder: Path) -> Path:
    path = folder / "records.jsonl"
    path.write_text(json.dumps({"id": "1", "original": f"you fool {HOSTILE}", "text": f"you {HOSTILE}",
                                "action": "rewritten", "method": "causal", "scores": {"after": 0.1}}) + "\n"
                    + json.dumps({"id": "2", "original": "x", "text": "", "action": "dropped", "method": ""}) + "\n",
                    "utf-8")
    return path


def test_the_page_is_offline_escaped_and_folds_toxic_text(recipe: Recipe, arms: dict[str, Path],
                                                          tmp_path: Path) -> None:
    recipe = recipe.model_copy(update={"description": HOSTILE})
    write_report(recipe, evaluations=arms, records=save_records(tmp_path), steps=dict(arms), output=tmp_path / "report")
    text = (tmp_path / "report/report.html").read_text("utf-8")
    page = Page(text)
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert "img" not in [tag for tag, _ in page.tags]
    assert not [value for _, attributes in page.tags for name, value in attributes.items()
                if name in ("src", "href") or (value and "://" in value)]
    assert "@import" not in text
    assert "you fool" in "".join(page.folded)
    assert "you fool" not in "".join(page.shown)
    for record in read_jsonl(arms["base"] / "generations.jsonl"):
        first = record["generations"][0]
        if first["toxicity"] is not None and first["toxicity"] >= 0.5:
            assert first["text"] not in "".join(page.shown)
    assert "1 rewritten, 1 dropped" in " ".join("".join(page.shown).split())


def test_the_report_holds_verdict_figures_timings_and_versions(recipe: Recipe, arms: dict[str, Path],
                                                               tmp_path: Path) -> None:
    result = write_report(recipe, evaluations=arms, records=None, steps={"evaluate base": arms["base"]},
                          output=tmp_path / "report")
    assert result.verdict == "not enough data"  # twelve prompts, and no raw arm
    assert any("'raw'" in reason for reason in result.reasons)
    report = json.loads((tmp_path / "report/report.json").read_text())
    assert report["seconds"]["evaluate base"] == read_manifest(arms["base"])["seconds"]
    assert report["versions"]["torch"]
    assert report["arms"]["dpo"]["mean_toxicity"]["value"] > 0
    assert {row["metric"] for row in report["differences"]} == {
        "expected_maximum_toxicity", "toxicity_probability", "mean_toxicity"}
    assert "samples" not in report


def test_the_model_card_is_what_the_hub_reads(recipe: Recipe, arms: dict[str, Path], tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    write_report(recipe, evaluations=arms, records=None, steps={}, output=tmp_path / "report")
    card = ModelCard.load(tmp_path / "report/model_card.md")
    results = {result.metric_type: result for result in card.data.eval_results or []}
    report = json.loads((arms["dpo"] / "report.json").read_text())
    assert results["mean_toxicity"].metric_value == pytest.approx(report["mean_toxicity"]["value"], abs=1e-4)
    assert results["mean_toxicity"].dataset_type == "allenai/real-toxicity-prompts"
    assert "## Limitations" in card.content
    front = yaml.safe_load(card.content.split("---")[1])
    assert "base_model" not in front  # a folder is no hub id


def test_arms_judged_by_different_scorers_get_no_report(recipe: Recipe, arms: dict[str, Path], prompts: Path,
                                                        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, ByLength("length-2"))
    run(recipe, prompts, None, tmp_path / "late", arm="late")
    with pytest.raises(DetoxError, match="different scorers"):
        write_report(recipe, evaluations={**arms, "late": tmp_path / "late"}, records=None, steps={},
                     output=tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_no_evaluation_gives_no_report(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(DetoxError, match="no evaluation"):
        write_report(recipe, evaluations={}, records=None, steps={}, output=tmp_path / "report")


# --- shards, stored continuations, served models -----------------------------------------------------------------


def test_the_union_of_the_shards_is_one_run(recipe: Recipe, prompts: Path, clean: Path, tmp_path: Path,
                                            monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, ByLength())
    run(recipe, prompts, clean, tmp_path / "whole")
    for number in range(5):
        evaluate(recipe, model=recipe.model.source, arm="base", prompts=prompts, clean=None,
                 output=tmp_path / f"shard{number}", shard=(number, 5))
    evaluate(recipe, model=recipe.model.source, arm="base", prompts=prompts, clean=clean, output=tmp_path / "union",
             generations=[tmp_path / f"shard{number}/generations.jsonl" for number in range(5)])
    for name in ("generations.jsonl", "values.json", "clean_generations.jsonl"):
        assert (tmp_path / "union" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize(("shard", "problem"), [
    ((2, 2), "there is no shard 2 of 2"), ((-1, 2), "there is no shard -1"), ((0, 0), "there is no shard 0 of 0"),
    ((0, 13), "13 shards of 12 prompts")])
def test_a_shard_that_does_not_exist_is_refused(
        recipe: Recipe, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shard: tuple[int, int],
        problem: str) -> None:
    use(monkeypatch, ByLength())
    with pytest.raises(DetoxError, match=problem):
        evaluate(recipe, model=recipe.model.source, arm="x", prompts=prompts, clean=None, output=tmp_path / "out",
                 shard=shard)


def test_a_shard_is_never_compared_with_a_whole_run(recipe: Recipe, prompts: Path, tmp_path: Path,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, ByLength())
    run(recipe, prompts, None, tmp_path / "whole")
    evaluate(recipe, model=recipe.model.source, arm="part", prompts=prompts, clean=None, output=tmp_path / "part",
             shard=(0, 2))
    for arms in (("part", "whole"), ("whole", "part")):
        with pytest.raises(DetoxError, match="shard"):
            write_report(recipe, evaluations={arm: tmp_path / arm for arm in arms}, records=None, steps={},
                         output=tmp_path / "report")


def test_stored_continuations_need_every_prompt_and_enough_of_them(recipe: Recipe, prompts: Path, tmp_path: Path,
                                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, ByLength())
    stored = tmp_path / "stored.jsonl"
    texts = [{"text": f" number {n}"} for n in range(3)]
    lines = [json.dumps({"id": f"p{n}", "prompt": {"text": "x"}, "generations": texts}) for n in range(12)]

    def score(content: list[str]) -> EvaluationSummary:
        stored.write_text("\n".join(content) + "\n", "utf-8")
        return evaluate(recipe, model="elsewhere", arm="x", prompts=prompts, clean=None,
                        output=tmp_path / f"out{len(content)}", generations=[stored])

    assert score(lines).mean_toxicity.value == pytest.approx(9 / 60)
    with pytest.raises(DetoxError, match="lack the prompt 'p11'"):
        score(lines[:-1])
    short = json.dumps({"id": "p11", "generations": texts[:2]})
    with pytest.raises(DetoxError, match="2 continuations of prompt 'p11', 3 are needed"):
        score([*lines[:-1], short, short])
    with pytest.raises(DetoxError, match="line 2"):
        score([lines[0], '{"id": 1}'])
