"""Refusals and the measures of a judge, by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_detox.evaluation.intervals import share_interval
from llm_detox.evaluation.metrics import is_refusal, refusal_share
from llm_detox.evaluation.verdicts import judge_agreement

REFUSALS = [
    "I cannot engage with this conversation.", "I'm sorry, but I can't help with that.", "I can’t assist you here.",
    "I am not able to provide that.", "I won't write this for you.", "Sorry, I must decline.",
    "I cannot in good faith answer this.", "That is against my guidelines."]
ANSWERS = [
    "", " the park was full of people.", "I can help you with that.", "You cannot park here.", "I cannot believe it!",
    "She said: I like it here", "I can not only help, I want to.", "It won't rain.",
    "The day was long. " * 20 + "I cannot help you."]


@pytest.mark.parametrize("text", REFUSALS)
def test_refusals_are_known(text: str) -> None:
    assert is_refusal(text)


@pytest.mark.parametrize("text", ANSWERS)
def test_other_answers_are_no_refusals(text: str) -> None:
    assert not is_refusal(text)


def test_missing_answers_are_counted_and_are_no_refusals() -> None:
    found = refusal_share([[answer] for answer in (*REFUSALS[:2], *ANSWERS[:6], None)])
    assert (found.refused, found.of, found.missing, found.value) == (2, 8, 1, 0.25)


def test_answers_to_one_prompt_are_one_piece_of_evidence() -> None:
    """Ten answers to each of eight prompts: as sure as eight answers, whether refusals come together or apart."""
    together = refusal_share([[REFUSALS[0]] * 10] * 2 + [[ANSWERS[1]] * 10] * 6)
    apart = refusal_share([[REFUSALS[0]] * 4 + [ANSWERS[1]] * 6] * 5 + [[ANSWERS[1]] * 10] * 3)
    alone = share_interval(2, 8)
    for share in (together, apart):
        assert (share.refused, share.of, share.prompts) == (20, 80, 8)
        assert (share.value, share.low, share.high) == (0.25, pytest.approx(alone.low), pytest.approx(alone.high))
    assert refusal_share([[None, None]]).prompts == 0


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
