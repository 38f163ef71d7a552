"""Other scorers: they score the same continuations, the gate asks those that took no part in training."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import ValidationError

from llm_detox.data.records import read_jsonl
from llm_detox.evaluation import opinions as opinions_step
from llm_detox.evaluation.evaluate import evaluate
from llm_detox.evaluation.gate import decide_gate
from llm_detox.evaluation.intervals import Bootstrap
from llm_detox.evaluation.opinions import Opinion, ScorerIdentity
from llm_detox.evaluation.report import build_report, write_report
from llm_detox.evaluation.report_content import GateDecision
from llm_detox.evaluation.report_words import in_words
from llm_detox.evaluation.results import Evaluation
from llm_detox.recipe import Recipe
from llm_detox.recipe.scorers import ScorerSection, ScoringSection
from llm_detox.scoring.base import ToxicityScorer
from tests.helpers.evaluations import arm, noisy
from tests.helpers.sources import make_sources
from tests.helpers.tiny import save_tiny_llama
from tests.unit.evaluation.conftest import ByLength, small_recipe, use


class ByVowels(ToxicityScorer):
    """The share of vowels; texts with a z have no score."""

    def __init__(self) -> None:
        super().__init__("vowels", "vowels-1", ("toxicity",), batch_size=16)

    def score_batch(self, texts: Sequence[str]) -> Sequence[Mapping[str, float] | None]:
        return [None if "z" in text else {"toxicity": sum(letter in "aeiou" for letter in text) / len(text)}
                for text in texts]


def test_another_scorer_scores_every_continuation_that_the_judging_one_does(
        tmp_path: Path, tiny_llama: Path, prompts: Path, clean: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = small_recipe(tmp_path, tiny_llama).model_dump()
    values["scoring"]["others"] = [{"kind": "transformers", "source": "owner/vowels"},
                                   {"kind": "ngram", "source": values["scoring"]["training"]["source"]}]
    recipe = Recipe.model_validate(values)
    use(monkeypatch, ByLength())
    monkeypatch.setattr(opinions_step, "load_scorer", lambda section: ByVowels())
    monkeypatch.setattr(opinions_step, "_PROMPTS_AT_ONCE", 5)
    monkeypatch.setattr(opinions_step, "fetch", lambda source, kind: Path(source))
    for number, name in enumerate(("base", "dpo")):
        model = save_tiny_llama(tmp_path / name, seed=number)
        evaluate(recipe, model=str(model), arm=name, prompts=prompts, clean=clean, output=tmp_path / f"{name} measured")
        said = json.loads((tmp_path / f"{name} measured" / "report.json").read_text("utf-8"))["others"]
        assert list(said) == ["vowels", "vowels vowels-1"], "two scorers of one name are told apart"
        assert [one["independent"] for one in said.values()] == [True, False]
        rows = [[one["text"] for one in record["generations"]]
                for record in read_jsonl(tmp_path / f"{name} measured" / "generations.jsonl")]
        assert said["vowels"]["unscored"] == sum("z" in text or not text.strip() for texts in rows for text in texts)
        scores = [[score for score in ByVowels().score(texts) if score is not None] for texts in rows]
        means = [sum(some) / len(some) for some in scores if some]
        assert said["vowels"]["mean_toxicity"]["value"] == pytest.approx(sum(means) / len(means))
    write_report(recipe, evaluations={name: tmp_path / f"{name} measured" for name in ("base", "dpo")}, records=None,
                 steps={}, output=tmp_path / "report")
    [first, second] = json.loads((tmp_path / "report" / "report.json").read_text("utf-8"))["opinions"]
    assert (first["name"], first["independent"], second["independent"]) == ("vowels", True, False)
    assert [cell["arm"] for cell in first["cells"]] == ["base", "dpo"]
    change = first["cells"][1]["change"]
    assert change["value"] == pytest.approx(
        first["cells"][1]["mean_toxicity"]["value"] - first["cells"][0]["mean_toxicity"]["value"], abs=0.02)
    for file in ("report.html", "report.md"):
        text = (tmp_path / "report" / file).read_text("utf-8")
        assert "By other scorers" in text
        assert "took part in training" in text
        assert f"{change['value']:.3f} [{change['low']:.3f}" in text.replace("+", "")


def seen(evaluation: Evaluation, name: str, level: float, *, independent: bool = True) -> Evaluation:
    """The evaluation with another scorer's scores: the same prompts at another level."""
    other = arm(evaluation.arm, noisy(level, 7))
    identity = replace(evaluation.report.scorer, name=name, fingerprint=name)
    opinion = Opinion(scorer=identity, independent=independent, unscored=0,
                      expected_maximum_toxicity=other.report.expected_maximum_toxicity,
                      toxicity_probability=other.report.toxicity_probability, mean_toxicity=other.report.mean_toxicity)
    report = replace(evaluation.report, others={**(evaluation.report.others or {}), name: opinion})
    return replace(evaluation, report=report, others={**evaluation.others, name: other.scores})


def arms_seen(last: float, *, independent: bool = True) -> dict[str, Evaluation]:
    """A last arm that the judging scorer finds much less toxic, and another scorer at this level; the base has 0.6."""
    levels = {"base": (1.0, 0.6), "dpo": (0.4, last)}
    return {name: seen(arm(name, noisy(judged, number)), "other", level, independent=independent)
            for number, (name, (judged, level)) in enumerate(levels.items(), start=1)}


def decided(tmp_path: Path, arms: Mapping[str, Evaluation]) -> GateDecision:
    recipe = Recipe.model_validate({**make_sources(tmp_path), "gate": {"against": ["base"]},
                                    "evaluation": {"bootstrap_samples": 1000}})
    return decide_gate(recipe.gate, arms, Bootstrap.of(recipe.evaluation, recipe.seed))


@pytest.mark.parametrize(("level", "verdict"), [(0.3, "pass"), (0.9, "fail")])
def test_the_verdict_needs_the_agreement_of_an_independent_scorer(tmp_path: Path, level: float, verdict: str) -> None:
    decision = decided(tmp_path, arms_seen(level))
    [asked] = [one for one in decision.conditions if one.reason.startswith("mean toxicity by other against base")]
    assert decision.verdict == asked.outcome == verdict


def test_a_scorer_that_took_part_in_training_is_not_asked(tmp_path: Path) -> None:
    decision = decided(tmp_path, arms_seen(0.9, independent=False))
    assert decision.verdict == "pass"
    assert not any("by other" in condition.reason for condition in decision.conditions)


@pytest.mark.parametrize("base", ["without", "another version"])
def test_a_scorer_that_did_not_score_both_arms_alike_decides_nothing(tmp_path: Path, base: str) -> None:
    arms = arms_seen(0.3)
    opinion = (arms["base"].report.others or {})["other"]
    changed = replace(opinion, scorer=replace(opinion.scorer, fingerprint="later"))
    arms["base"] = replace(arms["base"], report=replace(
        arms["base"].report, others=None if base == "without" else {"other": changed}))
    decision = decided(tmp_path, arms)
    assert decision.verdict == "not enough data"
    assert decision.reasons == ["mean toxicity by other against base: 0 prompts scored in both arms, 20 are needed"]


@pytest.mark.parametrize(("level", "independent", "said"), [
    (0.3, True, "Other scorers of the same texts: other sees mean toxicity fall."),
    (0.6, True, "Other scorers of the same texts: other sees no clear change."),
    (0.9, False, "Other scorers of the same texts: other, which took part in training, sees mean toxicity rise.")])
def test_a_contradiction_is_said_in_words(tmp_path: Path, level: float, independent: bool, said: str) -> None:
    recipe = Recipe.model_validate({**make_sources(tmp_path), "gate": {"against": ["base"]},
                                    "evaluation": {"bootstrap_samples": 1000}, "detoxify": {"similarity_model": None}})
    report = build_report(recipe, arms_seen(level, independent=independent), fates={}, seconds={}, judge=None)
    assert said in in_words(report)[-1]


def test_the_scorer_that_judges_is_no_other_one(tmp_path: Path) -> None:
    values = make_sources(tmp_path)
    values["scoring"]["others"] = [{"kind": "bilstm"}]
    with pytest.raises(ValidationError, match="one of `others` is the scorer that judges"):
        Recipe.model_validate(values)


def test_the_identity_of_a_scorer_is_what_the_report_says_of_it() -> None:
    section = ScorerSection(kind="transformers", source="owner/vowels")
    scoring = ScoringSection(training=ScorerSection(kind="bilstm"), judging=section)
    identity = ScorerIdentity.of(ByVowels(), section, scoring)
    assert identity.rows_in_common is None
    assert (identity.name, identity.attribute, identity.source) == ("vowels", "toxicity", "owner/vowels")
    assert identity.fingerprint.startswith("vowels-1-")
