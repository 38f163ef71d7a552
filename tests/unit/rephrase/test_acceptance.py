"""The order in which accepted rewrites of one text stand."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_detox.generation.trees import Loss
from llm_detox.rephrase.acceptance import Acceptance, Bounds, Candidate, perplexity, repeats

MEASURED = {"toxicity": st.floats(0, 0.99), "similarity": st.floats(0.01, 1), "perplexity": st.floats(1.001, 1e6)}
BETTER = {"toxicity": 0.5, "similarity": 1.05, "perplexity": 0.9}


def test_the_rank_is_the_golden_one() -> None:
    assert Candidate("a", toxicity=0.36, similarity=0.9, perplexity=64).rank == pytest.approx(0.729 * 0.8 / 8)


@given(st.fixed_dictionaries(MEASURED), st.sampled_from(sorted(BETTER)))
def test_what_is_better_in_one_respect_and_as_good_in_the_others_ranks_higher(
        measured: dict[str, float], respect: str) -> None:
    changed = {**measured, respect: measured[respect] * BETTER[respect]}
    assert Candidate("a", **changed).rank >= Candidate("b", **measured).rank


@pytest.mark.parametrize("one", [
    Candidate("not scored", None, refused="unscored"), Candidate("toxic", 0.9, refused="toxic"),
    Candidate("another meaning", 0.1, 0.2, refused="not similar"), Candidate("one token", 0.1, 0.9, math.inf, 5.0)])
def test_what_was_not_judged_to_the_end_and_what_cannot_be_read_ranks_last(one: Candidate) -> None:
    assert one.rank == 0


def test_a_longer_rewrite_is_charged_by_the_tokens_of_its_original() -> None:
    assert perplexity((30.0, 10), (40.0, 8)) == pytest.approx(math.exp(30 / 8))
    assert perplexity((30.0, 10), (40.0, 12)) == perplexity((30.0, 10)) == pytest.approx(math.exp(3))
    assert perplexity((30.0, 10), (0.0, 0)) == perplexity((30.0, 10))


@given(st.tuples(st.floats(0, 500), st.integers(1, 99)), st.integers(1, 99), st.lists(st.floats(0, 20), min_size=1))
def test_going_on_behind_the_length_of_the_original_never_reads_better(
        loss: tuple[float, int], original: int, added: list[float]) -> None:
    longer = (loss[0] + sum(added), max(loss[1], original) + len(added))
    assert perplexity(longer, (1.0, original)) >= perplexity((loss[0], max(loss[1], original)), (1.0, original))


class FakeScorer:
    def score(self, texts: Sequence[str]) -> list[float | None]:
        return [0.1] * len(texts)


class FakeFluency:
    """A language model of a table: text -> loss."""

    def __init__(self, losses: dict[str, Loss]) -> None:
        self.losses = losses

    def variant_losses(self, variants: Sequence[Sequence[str]]) -> list[list[Loss]]:
        return [[self.losses[text] for text in group] for group in variants]


def test_an_empty_phrase_behind_a_rewrite_neither_raises_its_rank_nor_passes_the_bound_of_fluency() -> None:
    losses = {"rude": (24.0, 8), "polite": (16.0, 8), "polite, I think": (20.0, 12), "polite, on and on": (32.0, 32)}
    acceptance = Acceptance(FakeScorer(), None, FakeFluency(losses), Bounds(toxicity=0.5, similarity=0, fluency=1))
    found = acceptance.judge(["rude"], [["polite, on and on", "polite, I think", "polite"]])[0]
    assert [(one.text, one.refused) for one in found] == [
        ("polite", None), ("polite, I think", None), ("polite, on and on", "not fluent")]


@pytest.mark.parametrize(("text", "expected"), [
    ("Don't think about it. Don't think about it.", True), ("It's good, IT'S good!", False),
    ("on and on and on", True), ("", False), ("one two three, and one two four", False)])
def test_three_words_in_a_row_that_come_twice_are_a_repetition(text: str, expected: bool) -> None:
    assert repeats(text) is expected


def test_a_rewrite_that_turns_in_circles_is_refused_unless_its_original_does_and_is_never_scored() -> None:
    circle = "go away now, go away now"
    losses = dict.fromkeys(["rude", "polite", "rude and rude and rude", circle], (16.0, 8))
    scored: list[str] = []

    class Scorer(FakeScorer):
        def score(self, texts: Sequence[str]) -> list[float | None]:
            scored.extend(texts)
            return super().score(texts)

    acceptance = Acceptance(Scorer(), None, FakeFluency(losses), Bounds(toxicity=0.5, similarity=0, fluency=1))
    found = acceptance.judge(["rude", "rude and rude and rude"], [[circle, "polite"], [circle]])
    assert [[(one.text, one.refused) for one in group] for group in found] == [
        [("polite", None), (circle, "repeats")], [(circle, None)]]
    assert scored == ["polite", circle]
