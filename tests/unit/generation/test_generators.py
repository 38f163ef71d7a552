"""A model of this process streams what the sampler would draw."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_detox.client.types import Parameters
from llm_detox.errors import DetoxError
from llm_detox.generation.generators import LocalStreamer
from llm_detox.generation.sampling import sample_continuations
from llm_detox.recipe.evaluation import SamplingSection

PROMPTS = ["the quick brown", "naïve café ☕", "you are"]


@pytest.fixture(scope="module")
def streamer(tiny_llama: Path) -> LocalStreamer:
    return LocalStreamer(str(tiny_llama))


@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_pieces_are_the_samplers_first_continuation(streamer: LocalStreamer, prompt: str) -> None:
    sampling = SamplingSection(max_new_tokens=30, top_p=0.95)
    [[drawn]] = sample_continuations(streamer.model, streamer.tokenizer, [prompt], k=1, sampling=sampling, seed=7)
    chunks = list(streamer.stream(prompt, Parameters(max_new_tokens=30, decoding_method="SAMPLING", top_p=0.95,
                                                     temperature=1.0, seed=7)))
    text = "".join(chunk.text for chunk in chunks)
    assert text == drawn
    assert len(text) > 10
    assert len(chunks) > 3
    assert chunks[-1].finish_reason in ("MAX_TOKENS", "EOS_TOKEN")
    assert {chunk.finish_reason for chunk in chunks[:-1]} == {"NOT_FINISHED"}


def test_greedy_answers_are_always_the_same(streamer: LocalStreamer) -> None:
    first, second = ("".join(chunk.text for chunk in streamer.stream(PROMPTS[0], Parameters(max_new_tokens=12)))
                     for _ in range(2))
    assert first == second
    assert first


def test_a_prompt_that_leaves_no_room_is_refused(streamer: LocalStreamer) -> None:
    with pytest.raises(DetoxError, match="more than the model's 256"):
        next(streamer.stream("the " * 300, Parameters(max_new_tokens=12)))
    with pytest.raises(DetoxError, match="without tokens"):
        next(streamer.stream("", Parameters(max_new_tokens=12)))
