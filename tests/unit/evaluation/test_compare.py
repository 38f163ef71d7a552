"""Arms beside each other: paired differences and ratios, what is never compared, p values for many comparisons."""

from __future__ import annotations

import json
import math
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
from llm_detox.evaluation.metrics import WordRuns, distinct, metric_values, prompt_score
from llm_detox.evaluation.results import read_evaluation
from llm_detox.recipe.evaluation import GateSection
from tests.helpers.evaluations import arm, noisy
from tests.helpers.intervals import OPTIONS, covered


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


@pytest.mark.parametrize("count", [30, pytest.param(200, marks=pytest.mark.heavy)])
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
def test_numbers_that_were_not_measured_alike_are_never_compared(key: str, value: Any, problem: str) -> None:
    arms = {"base": arm("base", noisy(1, 1)), "dpo": arm("dpo", noisy(0.5, 2), comparable={key: value})}
    with pytest.raises(DetoxError, match=problem):
        check_comparable(arms)
    with pytest.raises(DetoxError, match=problem):
        compare(arms, OPTIONS)
    with pytest.raises(DetoxError, match=problem):
        decide_gate(GateSection(), arms, OPTIONS)


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
