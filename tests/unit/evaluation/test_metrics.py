"""The measures and their intervals: cases by hand, laws, coverage by simulation; and the prompts that are read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_detox.errors import DetoxError
from llm_detox.evaluation.compare import attribute_shares, stage_table
from llm_detox.evaluation.continuations import Prompts
from llm_detox.evaluation.intervals import Bootstrap, mean_interval, ratio_interval, resampled_means, share_interval
from llm_detox.evaluation.metrics import (
    METRICS,
    StratumFigures,
    WordRuns,
    distinct,
    metric_values,
    prompt_score,
    strata_of,
    summarise,
    word_runs,
)
from llm_detox.evaluation.results import AttributeShare
from tests.helpers.evaluations import arm
from tests.helpers.intervals import OPTIONS, covered

SCORES = st.lists(st.lists(st.floats(0, 1) | st.none(), min_size=1, max_size=6), min_size=1, max_size=8)


def folded(rows: Sequence[Sequence[float | None]], threshold: float = 0.5) -> StratumFigures:
    return summarise([prompt_score(row, threshold) for row in rows], [False] * len(rows), OPTIONS)


# --- measures ----------------------------------------------------------------------------------------------------


def test_the_measures_of_a_case_by_hand() -> None:
    found = folded([[0.1, 0.7, 0.4], [0.2, 0.3, 0.1], [0.5, None, 0.1], [None, None, None]])
    assert found.expected_maximum_toxicity.value == pytest.approx((0.7 + 0.3 + 0.5) / 3)
    assert found.toxicity_probability.value == pytest.approx(2 / 3)  # at the threshold counts
    assert found.mean_toxicity.value == pytest.approx((0.4 + 0.2 + 0.3) / 3)
    assert (found.unscored, found.unscored_prompts, found.continuations) == (4, 1, 12)
    assert found.worst_case.expected_maximum_toxicity == pytest.approx((0.7 + 0.3 + 1 + 1) / 4)
    assert found.worst_case.toxicity_probability == pytest.approx(3 / 4)
    assert found.worst_case.mean_toxicity == pytest.approx((0.4 + 0.2 + 1.6 / 3 + 1) / 4)
    assert found.best_case.expected_maximum_toxicity == pytest.approx((0.7 + 0.3 + 0.5 + 0) / 4)
    assert found.best_case.toxicity_probability == pytest.approx(2 / 4)
    assert found.best_case.mean_toxicity == pytest.approx((0.4 + 0.2 + 0.6 / 3 + 0) / 4)


def test_without_any_score_there_is_no_measure_instead_of_a_zero() -> None:
    found = folded([[None, None]])
    assert all(found.metric(metric) is None for metric in METRICS)
    assert found.worst_case.toxicity_probability == 1.0


@given(rows=SCORES, extra=st.floats(0, 1) | st.none())
def test_more_continuations_never_lower_the_maximum(rows: list[list[float | None]], extra: float | None) -> None:
    before = metric_values([prompt_score(row, 0.5) for row in rows], "expected_maximum_toxicity")
    after = metric_values([prompt_score([*row, extra], 0.5) for row in rows], "expected_maximum_toxicity")
    known = ~np.isnan(before)
    assert (after[known] >= before[known]).all()


@given(rows=SCORES, data=st.data())
def test_whatever_the_unscored_ones_are_the_measures_lie_between_the_bounds(rows: list[list[float | None]],
                                                                           data: st.DataObject) -> None:
    found = folded(rows)
    filled = folded([[data.draw(st.floats(0, 1)) if score is None else score for score in row] for row in rows])
    for metric in METRICS:
        best, worst = (getattr(case, metric) for case in (found.best_case, found.worst_case))
        assert best - 1e-9 <= filled.metric(metric).value <= worst + 1e-9


@given(rows=SCORES)
def test_the_measures_are_bounded_and_ordered(rows: list[list[float | None]]) -> None:
    found = folded(rows)
    for metric in METRICS:
        if found.metric(metric):
            assert 0 <= found.metric(metric).value <= 1
            assert found.metric(metric).low <= found.metric(metric).value + 1e-12
            assert found.metric(metric).high >= found.metric(metric).value - 1e-12
    if found.mean_toxicity:
        assert found.mean_toxicity.value <= found.expected_maximum_toxicity.value + 1e-12


@given(rows=SCORES, data=st.data())
def test_order_does_not_matter(rows: list[list[float | None]], data: st.DataObject) -> None:
    shuffled = data.draw(st.permutations([data.draw(st.permutations(row)) for row in rows]))
    for metric in METRICS:
        left, right = (np.sort(metric_values([prompt_score(row, 0.5) for row in some], metric))
                       for some in (rows, shuffled))
        np.testing.assert_allclose(left, right, atol=1e-12)


@given(rows=SCORES, low=st.floats(0, 1), high=st.floats(0, 1))
def test_a_higher_threshold_never_raises_the_probability(rows: list[list[float | None]], low: float,
                                                         high: float) -> None:
    low, high = sorted((low, high))
    strict, loose = folded(rows, high).toxicity_probability, folded(rows, low).toxicity_probability
    assert strict is None or strict.value <= loose.value


def test_strata_follow_the_prompts_own_score() -> None:
    assert strata_of({"prompt": {"text": "x", "toxicity": 0.5}, "challenging": True}, 0.5) == (
        "all", "toxic", "challenging")
    assert strata_of({"prompt": {"text": "x", "toxicity": 0.49}, "challenging": False}, 0.5) == ("all", "non-toxic")
    assert strata_of({"prompt": {"text": "x"}}, 0.5) == ("all", "unknown")
    assert strata_of({"prompt": {"text": "x", "toxicity": None}}, 0.5) == ("all", "unknown")


def test_distinct_counts_different_runs_of_words_over_words() -> None:
    assert word_runs(["a b a b", "a b c"]) == WordRuns(ones=3, twos=3, threes=3, words=7)
    assert word_runs(["one"]) == WordRuns(1, 0, 0, 1)
    assert word_runs(["", " "]) == WordRuns(0, 0, 0, 0)


def test_distinct_is_a_mean_over_prompts_and_does_not_fall_with_their_number() -> None:
    """Two prompts whose continuations say the same: pooled they would seem to repeat themselves."""
    runs = [word_runs(["you see the sea", "we hear the wind"])] * 2 + [word_runs(["so so so so", "so"])]
    share = distinct(runs, OPTIONS)
    assert share.distinct_1.value == pytest.approx((7 / 8 + 7 / 8 + 1 / 5) / 3)
    assert share.distinct_2.value == pytest.approx((6 / 8 + 6 / 8 + 1 / 5) / 3)
    assert share.distinct_3.value == pytest.approx((4 / 8 + 4 / 8 + 1 / 5) / 3)
    assert share.distinct_2.low < share.distinct_2.value < share.distinct_2.high
    assert distinct(100 * runs, OPTIONS).distinct_2.value == pytest.approx(share.distinct_2.value)


def test_prompts_without_words_or_with_a_missing_continuation_say_nothing_of_repetition() -> None:
    known = distinct([word_runs(["a b", "a b"]), word_runs([""]), word_runs(["a b", None])], OPTIONS)
    assert known.distinct_2.value == 0.25
    assert not distinct([word_runs([None])], OPTIONS).distinct_1.known


def test_the_published_llama_2_table_comes_out_of_its_counts() -> None:
    """Recipe 2's published table: share at or over .5 of 99,442 continuations, base / SFT / DPO."""
    counts = {"toxicity": (4438, 3593, 2377), "severe_toxicity": (77, 70, 31), "identity_attack": (788, 413, 274),
              "insult": (1961, 1588, 900), "profanity": (2086, 1753, 1030), "threat": (1424, 919, 754)}
    published = {"toxicity": ("4.46", "3.61", "2.39"), "severe_toxicity": (".08", ".07", ".03"),
                 "identity_attack": (".79", ".42", ".28"), "insult": ("1.97", "1.60", ".90"),
                 "profanity": ("2.10", "1.76", "1.04"), "threat": ("1.43", ".92", ".76")}
    arms = {stage: arm(stage, [[0.1]], attributes={
        name: AttributeShare(count=row[place], of=99_442, share=row[place] / 99_442, low=0.0, high=1.0)
        for name, row in counts.items()}) for place, stage in enumerate(("base", "sft", "dpo"))}
    rows = stage_table(arms, OPTIONS)
    assert {row.attribute for row in rows} == set(counts)
    for row in rows:
        expected = [f"{float(value):.2f}" for value in published[row.attribute]]
        assert [cell.shown for cell in row.cells] == expected
    toxicity = next(row.cells for row in rows if row.attribute == "toxicity")
    assert toxicity[0].points is None
    assert toxicity[1].points == pytest.approx(-0.8498, abs=1e-3)
    assert toxicity[2].change == pytest.approx(-33.84, abs=0.01)
    # The binomial interval at 99,442 prompts: about a tenth of a point to each side.
    assert (toxicity[0].high - toxicity[0].low) / 2 == pytest.approx(
        100 * 1.96 * math.sqrt(0.0446 * 0.9554 / 99_442), rel=0.01)


def test_the_attribute_table_counts_scored_texts_alone() -> None:
    table = attribute_shares({"insult": "1-001-", "threat": "------"}, 0.95)
    assert (table["insult"].count, table["insult"].of, table["insult"].share) == (2, 4, 0.5)
    assert table["threat"].of == 0
    assert math.isnan(table["threat"].share)
    rows = stage_table({"base": arm("base", [[0.1]], attributes=table)}, OPTIONS)
    assert [cell.shown for row in rows for cell in row.cells] == ["50.00", None]


# --- intervals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "draw"), [
    (60, lambda random, n: random.beta(0.5, 2.5, n)), (60, lambda random, n: (random.random(n) < 0.3).astype(float)),
    (25, lambda random, n: random.beta(2, 5, n)), (300, lambda random, n: random.beta(0.3, 3, n))])
def test_intervals_cover_the_truth_as_often_as_they_say(count: int, draw: Any) -> None:
    random = np.random.default_rng(3)
    truth = float(draw(random, 2_000_000).mean())
    trials = 500
    hits = 0
    for trial in range(trials):
        found = mean_interval(draw(random, count), Bootstrap(1000, 0.95, trial))
        hits += found.low <= truth <= found.high
    assert 0.92 <= hits / trials <= 0.985


@pytest.mark.parametrize(("share", "count"), [(0.03, 100), (0.3, 40), (0.002, 2000)])
def test_intervals_of_shares_cover_the_truth_as_often_as_they_say(share: float, count: int) -> None:
    random = np.random.default_rng(5)

    def trial(_: int) -> tuple[float, float]:
        found = share_interval(int(random.binomial(count, share)), count)
        return found.low, found.high

    assert 0.92 <= covered(2000, trial, share) <= 0.99


def test_intervals_of_perplexities_cover_the_truth_as_often_as_they_say() -> None:
    """Texts of different lengths, whose losses hang together within a text."""
    random = np.random.default_rng(6)

    def trial(number: int) -> tuple[float, float]:
        tokens = random.integers(5, 60, 50).astype(float)
        losses = tokens * (3.0 + random.normal(0, 0.4, 50))
        found = ratio_interval(losses, tokens, Bootstrap(1000, 0.95, number))
        return found.low, found.high

    assert 0.92 <= covered(400, trial, 3.0) <= 0.985


def test_few_different_values_are_resampled_by_their_counts_like_any_others(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.repeat([0.0, 0.5, 1.0], [50, 30, 20])
    by_counts = mean_interval(values, Bootstrap(20_000, 0.95, 1))
    monkeypatch.setattr("llm_detox.evaluation.intervals._FEW_VALUES", 0)
    one_by_one = mean_interval(values, Bootstrap(20_000, 0.95, 1))
    assert by_counts.value == one_by_one.value == pytest.approx(0.35)
    assert by_counts.low == pytest.approx(one_by_one.low, abs=0.006)
    assert by_counts.high == pytest.approx(one_by_one.high, abs=0.006)


def test_when_nothing_varies_the_interval_still_tells_how_few_there_were() -> None:
    none = mean_interval(np.zeros(20), OPTIONS)
    assert (none.value, none.low) == (0, 0)
    assert none.high == pytest.approx(0.1611, abs=1e-3)  # Wilson score interval of 0 of 20
    every = mean_interval(np.ones(20), OPTIONS)
    assert every.low == pytest.approx(1 - 0.1611, abs=1e-3)


def test_resampling_keeps_rows_together_and_is_repeatable() -> None:
    values = np.random.default_rng(0).random((50, 1))
    means = resampled_means(np.concatenate([values, 2 * values], axis=1), Bootstrap(1000, 0.95, 7))
    np.testing.assert_allclose(means[:, 1], 2 * means[:, 0])
    again = resampled_means(np.concatenate([values, 2 * values], axis=1), Bootstrap(1000, 0.95, 7))
    np.testing.assert_array_equal(means, again)
    assert means[:, 0].std() == pytest.approx(values.std() / math.sqrt(50), rel=0.1)


def test_resampling_in_pieces_does_not_change_its_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_detox.evaluation.intervals._VALUES_AT_ONCE", 70)
    means = resampled_means(np.arange(20.0)[:, None], Bootstrap(3000, 0.95, 7))
    assert means.shape == (3000, 1)
    assert means.std() == pytest.approx(np.arange(20.0).std() / math.sqrt(20), rel=0.1)


def test_a_ratio_is_that_of_the_sums() -> None:
    found = ratio_interval(np.array([2.0, 4.0, 9.0]), np.array([1.0, 2.0, 3.0]), OPTIONS)
    assert found.value == pytest.approx(2.5)
    assert found.low <= 2.5 <= found.high


# --- files -------------------------------------------------------------------------------------------------------


def test_prompts_come_as_records_or_as_plain_text(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    lines = ['{"prompt": "So I"}', '{"prompt": {"text": "And then", "toxicity": 0.7}, "id": "x"}', '{"prompt": "So I"}']
    path.write_text("\n".join(lines), "utf-8")
    prompts = Prompts(path)
    records = list(prompts)
    assert len(prompts) == 3
    assert list(prompts) == records, "read anew, the same"
    assert [record["prompt"]["text"] for record in records] == ["So I", "And then", "So I"]
    assert len({record["id"] for record in records}) == 3
    assert records[1]["id"] == "x"


@pytest.mark.parametrize(("content", "problem"), [
    ("", "no prompts"), ('{"text": "a"}\n', "'prompt' is missing"), ('{"prompt": {"toxicity": 1}}\n', "no text"),
    ('{"prompt": "a"}\n{"prompt": " "}\n', "record 2"), ('{"prompt": 3}\n', "no text"), ("[1]\n", "JSON object")])
def test_bad_prompts_are_named(tmp_path: Path, content: str, problem: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(content, "utf-8")
    with pytest.raises(DetoxError, match=problem):
        Prompts(path)
