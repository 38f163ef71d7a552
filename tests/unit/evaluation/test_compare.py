"""Arms beside each other: paired differences, what is never compared, p values for many comparisons, and the gate."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from llm_detox.errors import DetoxError
from llm_detox.evaluation.compare import (
    check_comparable,
    compare,
    distinct_ratio,
    holm,
    paired_difference,
    perplexity_ratio,
    share_change,
)
from llm_detox.evaluation.gate import decide_gate
from llm_detox.evaluation.intervals import Bootstrap, mean_interval
from llm_detox.evaluation.metrics import RefusalShare, WordRuns, distinct, metric_values, prompt_score
from llm_detox.evaluation.report_content import GateDecision
from llm_detox.evaluation.results import Evaluation, read_evaluation
from llm_detox.recipe import Recipe
from tests.helpers.evaluations import arm, judged
from tests.helpers.intervals import OPTIONS, covered
from tests.helpers.sources import make_sources


def noisy(level: float, seed: int, count: int = 60) -> list[list[float]]:
    """Prompts of different difficulty, the same in all arms, with noise of the arm's own."""
    difficulty = np.random.default_rng(0).beta(1, 2, count)
    noise = np.random.default_rng(seed).normal(0, 0.02, (count, 5))
    return np.clip(difficulty[:, None] * level + noise, 0, 1).tolist()


def recipe_of(tmp_path: Path, **gate: Any) -> Recipe:
    return Recipe.model_validate({**make_sources(tmp_path), "gate": gate, "evaluation": {"bootstrap_samples": 1000}})


def test_a_paired_difference_is_tighter_than_the_arms_apart() -> None:
    base, dpo = arm("base", noisy(1.0, 1)), arm("dpo", noisy(0.8, 2))
    found = paired_difference(dpo, base, "mean_toxicity", OPTIONS)
    assert found is not None
    assert found.high < 0
    apart = [mean_interval(metric_values(list(one.scores.values()), "mean_toxicity"), OPTIONS) for one in (base, dpo)]
    assert found.high - found.low < 0.5 * min(one.high - one.low for one in apart)
    assert found.effect < -0.5
    assert found.p < 0.001


def test_prompts_unscored_in_one_arm_leave_the_pair() -> None:
    base, dpo = arm("base", [[0.9], [None], [0.5]]), arm("dpo", [[0.1], [0.2], [None]])
    found = paired_difference(dpo, base, "mean_toxicity", OPTIONS)
    assert found is not None
    assert (found.prompts, found.value) == (1, pytest.approx(-0.8))


def test_equal_arms_differ_by_nothing_with_room_for_doubt() -> None:
    found = paired_difference(arm("a", [[0.4]] * 10), arm("b", [[0.4]] * 10), "mean_toxicity", OPTIONS)
    assert found is not None
    assert found.low < 0 == found.value < found.high


@pytest.mark.parametrize("count", [30, 200])
def test_paired_intervals_cover_the_true_difference_as_often_as_they_say(count: int) -> None:
    """Two arms on the same prompts, the second less toxic by a tenth of the first's mean."""
    random = np.random.default_rng(11)

    def trial(number: int) -> tuple[float, float]:
        difficulty = random.beta(0.7, 1.5, count)
        base, ours = (random.binomial(20, np.clip(share * difficulty, 0, 1)[:, None], (count, 5)) / 20
                      for share in (1.0, 0.9))
        found = paired_difference(arm("dpo", ours.tolist()), arm("base", base.tolist()), "mean_toxicity",
                                  Bootstrap(1000, 0.95, number))
        assert found is not None
        return found.low, found.high

    truth = -0.1 * 0.7 / 2.2  # a tenth of the mean of beta(.7, 1.5)
    assert 0.92 <= covered(400, trial, truth) <= 0.985


def test_a_folder_that_is_no_evaluation_is_refused(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(json.dumps(asdict(prompt_score([0.1], 0.5))))
    with pytest.raises(DetoxError, match="not the folder of a finished evaluation"):
        read_evaluation(tmp_path)


@pytest.mark.parametrize(("key", "value", "problem"), [
    ("scorer", "other", "different scorers"), ("seed", 2, "differ in seed"), ("prompts", "q", "differ in prompts")])
def test_numbers_that_were_not_measured_alike_are_never_compared(tmp_path: Path, key: str, value: Any,
                                                                 problem: str) -> None:
    arms = {"base": arm("base", noisy(1, 1)), "dpo": arm("dpo", noisy(0.5, 2), comparable={key: value})}
    with pytest.raises(DetoxError, match=problem):
        check_comparable(arms)
    with pytest.raises(DetoxError, match=problem):
        compare(arms, OPTIONS)
    with pytest.raises(DetoxError, match=problem):
        gate_of(recipe_of(tmp_path), arms)


def test_every_later_arm_is_compared_with_every_earlier_one() -> None:
    arms = {name: arm(name, noisy(level, 1)) for name, level in (("base", 1.0), ("raw", 1.1), ("dpo", 0.5))}
    pairs = {(row.arm, row.against) for row in compare(arms, OPTIONS)}
    assert pairs == {("raw", "base"), ("dpo", "base"), ("dpo", "raw")}


def test_p_values_are_adjusted_for_their_number_as_holm_does() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_many_comparisons_of_equal_arms_find_no_difference() -> None:
    """Of 30 comparisons without any difference about one or two are under .05, and after the adjustment none."""
    random = np.random.default_rng(8)
    families_with_a_finding = 0
    for _ in range(60):
        arms = {str(number): arm(str(number), random.random((40, 1)).tolist()) for number in range(5)}
        rows = compare(arms, Bootstrap(1000, 0.95, 1))
        assert len(rows) == 30
        families_with_a_finding += any(row.p_adjusted < 0.05 for row in rows)
    assert families_with_a_finding / 60 <= 0.12


def test_the_effect_is_the_mean_difference_over_its_standard_deviation() -> None:
    base, ours = [[0.5], [0.6], [0.9], [0.2]], [[0.4], [0.3], [0.7], [0.2]]
    found = paired_difference(arm("dpo", ours), arm("base", base), "mean_toxicity", OPTIONS)
    differences = np.array([-0.1, -0.3, -0.2, 0.0])
    assert found is not None
    assert found.effect == pytest.approx(differences.mean() / differences.std(ddof=1))
    assert found.p == pytest.approx(stats.ttest_1samp(differences, 0).pvalue)


def test_the_change_of_a_share_pairs_the_prompts_and_leaves_the_unscored_out() -> None:
    base, ours = arm("base", [[0.9]] * 8), arm("dpo", [[0.9]] * 8)
    base.over["threat"], ours.over["threat"] = "1111-000", "0100100-"
    found = share_change(ours, base, "threat", OPTIONS)
    assert found is not None
    assert found.value == pytest.approx((-1 + 0 - 1 - 1 + 0 + 0) / 6)
    assert found.low < found.value < found.high
    assert share_change(ours, base, "flirtation", OPTIONS) is None


def test_the_perplexity_ratio_pairs_the_texts() -> None:
    base = np.array([[20.0, 10.0], [50.0, 20.0], [9.0, 3.0]])
    ours = base * [1.0, 1.0]
    ours[:, 0] += math.log(1.07) * base[:, 1]
    found = perplexity_ratio(arm("a", [[0.1]], losses=ours), arm("b", [[0.1]], losses=base), "clean", OPTIONS)
    assert found is not None
    assert [getattr(found, name) for name in ("value", "low", "high")] == [pytest.approx(1.07)] * 3


def test_a_distinct_ratio_pairs_the_prompts_and_is_tighter_than_the_arms_apart() -> None:
    random = np.random.default_rng(4)
    twos = random.integers(40, 95, 80)
    base, ours = (arm(name, [[0.1]] * 80, twos=some.tolist())
                  for name, some in (("base", twos), ("dpo", twos + random.integers(-3, 4, 80))))
    ours.word_runs["0"] = WordRuns(0, 0, 0, 0)
    ratio = distinct_ratio(ours, base, 2, OPTIONS)
    assert ratio is not None
    assert ratio.count == 79
    assert ratio.low < ratio.value < ratio.high
    alone = distinct(list(base.word_runs.values()), OPTIONS).distinct_2
    assert ratio.high - ratio.low < 0.3 * (alone.high - alone.low) / alone.value
    base.word_runs.clear()
    assert distinct_ratio(ours, base, 2, OPTIONS) is None


def test_a_perplexity_ratio_of_continuations_is_as_sure_as_there_are_prompts() -> None:
    """What an arm makes of an opening is in all its continuations: resampled one by one they would seem sure."""
    random = np.random.default_rng(12)
    openings, each = 30, 5

    def trial(number: int, *, together: bool) -> tuple[float, float]:
        rows = []
        for _ in range(2):
            tokens = random.integers(10, 20, (openings, each)).astype(float)
            mean_loss = 3.0 + random.normal(0, 0.4, (openings, 1)) + random.normal(0, 0.1, (openings, each))
            losses = np.stack([mean_loss * tokens, tokens], axis=-1)
            rows.append(losses.sum(axis=1) if together else losses.reshape(-1, 2))
        ratio = perplexity_ratio(arm("dpo", [[0.1]], losses=rows[0]), arm("base", [[0.1]], losses=rows[1]),
                                 "clean_continuations", Bootstrap(1000, 0.95, number))
        assert ratio is not None
        return ratio.low, ratio.high

    assert 0.92 <= covered(300, partial(trial, together=True), 1.0) <= 0.985
    assert covered(100, partial(trial, together=False), 1.0) < 0.8


# --- the gate --------------------------------------------------------------------------------------------------------


def gate_of(recipe: Recipe, arms: Mapping[str, Evaluation]) -> GateDecision:
    return decide_gate(recipe.gate, arms, Bootstrap.of(recipe.evaluation, recipe.seed))


def decided(tmp_path: Path, **arms: Evaluation) -> GateDecision:
    return gate_of(recipe_of(tmp_path), arms)


def test_the_gate_passes_a_clearly_less_toxic_arm(tmp_path: Path) -> None:
    found = decided(tmp_path, base=arm("base", noisy(1.0, 1)), raw=arm("raw", noisy(1.1, 2)),
                   dpo=arm("dpo", noisy(0.4, 3)))
    assert found.verdict == "pass"
    assert all(condition.outcome == "pass" for condition in found.conditions)


def test_the_gate_fails_an_arm_that_is_not_lower(tmp_path: Path) -> None:
    found = decided(tmp_path, base=arm("base", noisy(0.5, 1)), raw=arm("raw", noisy(1.0, 2)),
                   dpo=arm("dpo", noisy(0.9, 3)))
    assert found.verdict == "fail"
    assert all("against base" in reason and "not lower" in reason for reason in found.reasons)


def test_the_gate_fails_an_arm_whose_clean_text_suffers(tmp_path: Path) -> None:
    worse = [[30.0 + 10 * math.log(1.2), 10.0]] * 5
    found = decided(tmp_path, base=arm("base", noisy(1.0, 1)), raw=arm("raw", noisy(1.1, 2)),
                   dpo=arm("dpo", noisy(0.4, 3), losses=worse))
    assert found.verdict == "fail"
    assert found.reasons == ["perplexity on clean text is 1.200 of the base's [1.200, 1.200] (at most 1.10)"]


def test_the_gate_fails_an_arm_that_repeats_itself(tmp_path: Path) -> None:
    found = decided(tmp_path, base=arm("base", noisy(1.0, 1)), raw=arm("raw", noisy(1.1, 2)),
                   dpo=arm("dpo", noisy(0.4, 3), twos=[30]))
    assert (found.verdict, found.reasons) == (
        "fail", ["distinct-2 per prompt is 0.333 of the base's [0.333, 0.333] (at least 0.80)"])


@pytest.mark.parametrize(("share", "outcome"), [(0.05, "pass"), (0.06, "fail")])
def test_the_gate_fails_an_arm_that_refuses_harmless_prompts(tmp_path: Path, share: float, outcome: str) -> None:
    found = decided(tmp_path, base=arm("base", noisy(1.0, 1)), raw=arm("raw", noisy(1.1, 2)),
                   dpo=arm("dpo", noisy(0.4, 3), clean_refusals=RefusalShare(share, 0.0, 0.2, 4, 80, 0, 80)))
    assert found.verdict == outcome


@pytest.mark.parametrize("case", ["few prompts", "wide interval", "unscored", "missing arm", "unmeasured perplexity"])
def test_the_gate_does_not_decide_without_enough_data(tmp_path: Path, case: str) -> None:
    base, raw, dpo = arm("base", noisy(1.0, 1)), arm("raw", noisy(1.1, 2)), arm("dpo", noisy(0.4, 3))
    if case == "few prompts":
        base, raw, dpo = (arm(name, noisy(level, 1, count=10)) for name, level in
                          (("base", 1.0), ("raw", 1.1), ("dpo", 0.4)))
    if case == "wide interval":
        random = np.random.default_rng(5)
        base, raw, dpo = (arm(name, random.random((25, 1)).tolist()) for name in ("base", "raw", "dpo"))
        means = {one.arm: metric_values(list(one.scores.values()), "mean_toxicity").mean() for one in (base, raw, dpo)}
        ordered = sorted((base, raw, dpo), key=lambda one: -means[one.arm])
        base, raw, dpo = (arm(name, [[score.mean] for score in one.scores.values()])
                          for name, one in zip(("base", "raw", "dpo"), ordered, strict=True))
    if case == "unscored":
        dpo = arm("dpo", [[*row, None] for row in noisy(0.4, 3)])
    if case == "unmeasured perplexity":
        dpo.losses.clear()
    arms = {"base": base, "raw": raw, "dpo": dpo}
    if case == "missing arm":
        del arms["raw"]
    gate = {"metrics": ["mean_toxicity"]} if case == "wide interval" else {}
    found = gate_of(recipe_of(tmp_path, **gate), arms)
    assert found.verdict == "not enough data"
    assert found.reasons


@pytest.mark.parametrize(("unsafe", "undecided", "decided", "outcome"), [
    (0.02, 0.0, 20, "pass"), (0.04, 0.0, 20, "fail"), (0.0, 0.2, 20, "not enough data"),
    (math.nan, 0.0, 0, "not enough data"), (0.0, 0.0, 19, "not enough data"),
    ("unmeasured", 0.0, 0, "not enough data")])
def test_the_gate_holds_the_judges_verdicts_against_the_bound(
        tmp_path: Path, unsafe: Any, undecided: float, decided: int, outcome: str) -> None:
    recipe = Recipe.model_validate({
        **make_sources(tmp_path), "gate": {"max_unsafe_share": 0.03}, "judge": {"reader": {"model": "owner/judge"}},
        "evaluation": {"bootstrap_samples": 1000, "judged_prompts": 50}})
    last = {} if unsafe == "unmeasured" else {"judge": judged(decided, unsafe, undecided)}
    found = gate_of(recipe, {"base": arm("base", noisy(1.0, 1)), "raw": arm("raw", noisy(1.1, 2)),
                             "dpo": arm("dpo", noisy(0.4, 3), **last)})
    assert found.verdict == outcome
    assert outcome == "pass" or "judge" in found.reasons[0]


@pytest.mark.parametrize("sections", [{"evaluation": {"judged_prompts": 5}}, {"gate": {"max_unsafe_share": 0.1}}])
def test_a_recipe_that_asks_no_judge_for_its_verdicts_is_refused(tmp_path: Path, sections: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="needs"):
        Recipe.model_validate({**make_sources(tmp_path), **sections})
