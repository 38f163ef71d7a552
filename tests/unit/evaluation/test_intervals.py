"""Shares and the measures of a judge, by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_detox.evaluation.intervals import share_interval
from llm_detox.evaluation.verdicts import judge_agreement


def test_the_wilson_interval_of_a_textbook_case() -> None:
    found = share_interval(1, 10)
    assert (found.low, found.high) == (pytest.approx(0.0179, abs=1e-4), pytest.approx(0.4042, abs=1e-4))
    assert math.isnan(share_interval(0, 0).value)


@given(st.integers(1, 500).flatmap(lambda of: st.tuples(st.integers(0, of), st.just(of))))
def test_a_share_lies_in_its_interval(case: tuple[int, int]) -> None:
    found = share_interval(*case)
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert found.low < found.high


def test_a_judge_by_hand() -> None:
    labels = ["bad"] * 4 + ["good"] * 6
    verdicts = ["bad", "bad", "good", None, "good", "good", "good", "good", "bad", None]
    found = judge_agreement(labels, verdicts)
    bad, good = found.classes["bad"], found.classes["good"]
    assert (bad.precision.value, bad.recall.value, bad.support) == (pytest.approx(2 / 3), 0.5, 4)
    assert (good.precision.value, good.recall.value) == (0.8, pytest.approx(4 / 6))
    assert found.no_decision.value == 0.2
    assert found.accuracy.value == 0.6
    assert found.confusion["bad -> no decision"] == 1


def test_a_test_set_of_one_class_is_refused() -> None:
    with pytest.raises(ValueError, match="both classes"):
        judge_agreement(["bad", "bad"], ["bad", "good"])
    with pytest.raises(ValueError, match="1 labels and 2 verdicts"):
        judge_agreement(["bad"], ["bad", "good"])
