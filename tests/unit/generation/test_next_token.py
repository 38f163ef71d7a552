"""Logits to tokens: the same sets and scores as the warpers of transformers, and draws that follow the seed alone."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    ExponentialDecayLengthPenalty,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from llm_detox.generation.next_token import PromptDetails, Sampler, detail
from llm_detox.generation.tokens import SamplerSettings

NONE: frozenset[int] = frozenset()


def _logits(seed: int, size: int = 700, spread: float = 3.0) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)) * spread


@given(seed=st.integers(0, 10**6), temperature=st.floats(0.05, 3), top_k=st.integers(0, 800),
       top_p=st.floats(0.05, 0.99) | st.just(1.0), spread=st.floats(0.01, 6))
@settings(max_examples=150, deadline=None)
def test_warped_scores_are_those_of_transformers(seed: int, temperature: float, top_k: int, top_p: float,
                                                 spread: float) -> None:
    logits = _logits(seed, spread=spread)
    own = Sampler(SamplerSettings(temperature=temperature, top_k=top_k, top_p=top_p, seed=1), [], NONE).scores(logits)
    theirs = TemperatureLogitsWarper(temperature)(None, logits[None])
    if top_k:
        theirs = TopKLogitsWarper(top_k)(None, theirs)
    kept_before = theirs[0]
    if top_p < 1:
        theirs = TopPLogitsWarper(top_p)(None, theirs)
    ours, others = own > -math.inf, theirs[0] > -math.inf
    # Rounding of the running sum may decide on tokens at the border of the nucleus.
    differing = ours != others
    assert int(differing.sum()) <= 1 or float(kept_before.softmax(-1)[differing].sum()) < 1e-5
    assert torch.allclose(own[ours & others], kept_before[ours & others])


@given(seed=st.integers(0, 10**6), typical=st.floats(0.05, 0.99))
@settings(max_examples=100, deadline=None)
def test_typical_sampling_keeps_the_tokens_that_transformers_keeps(seed: int, typical: float) -> None:
    logits = _logits(seed)
    own = Sampler(SamplerSettings(temperature=1.0, typical_p=typical, seed=1), [], NONE).scores(logits)
    theirs = TypicalLogitsWarper(typical)(None, logits[None])[0]
    assert int(((own > -math.inf) != (theirs > -math.inf)).sum()) <= 1


def test_repetition_penalty_is_that_of_transformers() -> None:
    logits, seen = _logits(3), [5, 9, 9, 700 - 1]
    own = Sampler(SamplerSettings(repetition_penalty=1.7), seen, NONE).scores(logits)
    theirs = RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([seen]), logits[None].clone())[0]
    assert torch.allclose(own, theirs)


def test_length_penalty_is_that_of_transformers() -> None:
    logits = _logits(4)
    sampler = Sampler(SamplerSettings(length_penalty=(2, 1.5)), [1, 2, 3], frozenset({7}))
    for token in (10, 11, 12, 13):
        sampler.took(token)
    theirs = ExponentialDecayLengthPenalty((2, 1.5), 7, 3)(torch.tensor([[1, 2, 3, 10, 11, 12, 13]]), logits[None])[0]
    assert torch.allclose(sampler.scores(logits), theirs, rtol=1e-5)


def test_a_long_wait_past_the_length_penalty_does_not_overflow() -> None:
    sampler = Sampler(SamplerSettings(length_penalty=(0, 10.0)), [], frozenset({7}))
    for _ in range(1000):
        sampler.took(1)
    scores = sampler.scores(_logits(5))
    assert not scores.isnan().any()
    assert int(sampler.choose(scores)) == 7 or float(_logits(5)[7]) < 0


def test_no_end_of_sequence_before_the_least_number_of_tokens() -> None:
    sampler = Sampler(SamplerSettings(min_new_tokens=2), [], frozenset({3, 4}))
    logits = torch.tensor([0.0, 1.0, 2.0, 9.0, 8.0])
    chosen = []
    for _ in range(3):
        chosen.append(int(sampler.choose(sampler.scores(logits))))
        sampler.took(chosen[-1])
    assert chosen == [2, 2, 3]


def test_a_seed_gives_the_same_draws_and_another_seed_others() -> None:
    def draws(seed: int) -> list[int]:
        sampler = Sampler(SamplerSettings(temperature=1.0, seed=seed), [], NONE)
        return [int(sampler.choose(sampler.scores(_logits(step)))) for step in range(20)]

    assert draws(1) == draws(1)
    assert draws(1) != draws(2)


def test_draws_follow_the_distribution() -> None:
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    sampler = Sampler(SamplerSettings(temperature=1.0, seed=11), [], NONE)
    scores = sampler.scores(probabilities.log())
    counts = torch.bincount(torch.stack([sampler.choose(scores) for _ in range(20_000)]), minlength=4) / 20_000
    assert torch.allclose(counts, probabilities, atol=0.012)


def test_what_is_ruled_out_is_never_drawn() -> None:
    sampler = Sampler(SamplerSettings(temperature=1.0, top_k=2, seed=5), [], NONE)
    scores = sampler.scores(torch.tensor([0.0, 0.1, 0.2, 0.3]))
    assert {int(sampler.choose(scores)) for _ in range(500)} == {2, 3}


def test_details_give_logprob_rank_and_best_tokens_with_ties() -> None:
    p = SamplerSettings(logprobs=True, ranks=True, top_n=2)
    scores = torch.tensor([1.0, 3.0, 2.0, 2.0, -math.inf])
    found = detail(p, 2, scores)
    assert found.logprob == pytest.approx(float(scores.log_softmax(-1)[2]))
    assert found.rank == 2
    assert [token for token, _ in found.top] == [1, 2, 3]


def test_best_tokens_leave_out_what_is_ruled_out() -> None:
    p = SamplerSettings(top_n=3)
    assert detail(p, 0, torch.tensor([1.0, -math.inf, -math.inf])).top == [(0, 0.0)]


def test_the_first_input_token_has_no_logprob() -> None:
    details = PromptDetails(SamplerSettings(logprobs=True, ranks=True), [0, 1])
    details.watch(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    first, second = details.details
    assert math.isnan(first.logprob)
    assert first.rank == 0
    assert second.logprob == pytest.approx(-math.log1p(math.exp(-1)))
    assert second.rank == 1


def test_input_details_do_not_depend_on_how_the_prompt_is_cut() -> None:
    p = SamplerSettings(logprobs=True, ranks=True, top_n=2)
    tokens, logits = [3, 1, 4, 1, 5, 9, 2], torch.randn(7, 10, generator=torch.Generator().manual_seed(1))
    whole, parts = PromptDetails(p, tokens), PromptDetails(p, tokens)
    whole.watch(logits)
    for part in logits.split(3):
        parts.watch(part)
    assert whole.details[1:] == parts.details[1:]
    assert len(parts.details) == 7
    assert parts.details[2].logprob == pytest.approx(float(logits[1].log_softmax(-1)[4]))
