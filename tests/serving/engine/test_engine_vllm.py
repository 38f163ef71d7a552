"""The vLLM back end: its words for our parameters, and, where vLLM is installed, its answers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from serving.engine.backend_vllm import VllmEngine, detail, installed, prompt_details
from serving.engine.validation import Parameters
from tests.serving.engine.running import PROMPT, Engine, refused, running_engine

ALL = Parameters(generated_tokens=True, logprobs=True, ranks=True, top_n=2)


def _item(logprob: float, rank: int) -> Any:
    return SimpleNamespace(logprob=logprob, rank=rank)


def test_candidates_become_details_best_first() -> None:
    found = detail(ALL, 7, {7: _item(-3.0, 9), 4: _item(-0.9, 2), 5: _item(-0.5, 1)})
    assert (found.token, found.logprob, found.rank) == (7, -3.0, 9)
    assert found.top == [(5, -0.5), (4, -0.9)]


def test_only_what_is_asked_for_is_told() -> None:
    found = detail(Parameters(generated_tokens=True, top_n=1), 5, {5: _item(-0.5, 1), 4: _item(-0.9, 2)})
    assert (found.logprob, found.rank, found.top) == (0.0, 0, [(5, 0.0)])


def test_candidates_that_are_ruled_out_are_left_out() -> None:
    assert detail(ALL, 5, {5: _item(0.0, 1), 4: _item(-math.inf, 2)}).top == [(5, 0.0)]


def test_the_first_input_token_has_no_logprob() -> None:
    first, second = prompt_details(ALL, [3, 5], [None, {5: _item(-0.5, 1)}])
    assert math.isnan(first.logprob)
    assert (second.token, second.rank) == (5, 1)


def test_what_vllm_cannot_do_is_refused() -> None:
    engine = VllmEngine.__new__(VllmEngine)
    assert "typical_p" in str(engine.refusal(Parameters(typical_p=0.5)))
    assert "length_penalty" in str(engine.refusal(Parameters(length_penalty=(1, 1.5))))
    assert engine.refusal(Parameters(temperature=1.0, top_p=0.9, length_penalty=(1, 1.0))) is None


needs_vllm = pytest.mark.skipif(not installed(), reason="vLLM is not installed (it needs an environment of its own)")


@pytest.fixture(scope="module")
def served(engine_model: Path) -> Iterator[Engine]:
    with running_engine(engine_model, "--backend", "vllm", "--max-batch-size", "8") as found:
        yield found


@needs_vllm
@pytest.mark.slow
def test_greedy_text_is_that_of_transformers(served: Engine, reference: Any) -> None:
    texts = ["you are", "the train to the city", PROMPT]
    answers = served.generate(*texts, stopping={"max_new_tokens": 24})
    assert [a.text for a in answers] == [reference.text_of(reference(text, max_new_tokens=24)) for text in texts]


@needs_vllm
@pytest.mark.slow
def test_streams_stops_seeds_and_details(served: Engine) -> None:
    full = served.generate(PROMPT, stopping={"max_new_tokens": 20})[0].text
    messages = served.stream(PROMPT, stopping={"max_new_tokens": 20})
    assert "".join(m.text for m in messages) == full
    [stopped] = served.generate(PROMPT, stopping={"stop_sequences": [full[6:8]], "include_stop_sequence": False})
    assert (stopped.text, stopped.stop_sequence) == (full[: full.index(full[6:8])], full[6:8])
    sampled = {"method": 1, "sampling": {"seed": 4}}
    assert served.generate(PROMPT, **sampled)[0].text == served.generate(PROMPT, **sampled)[0].text
    asked = {"generated_tokens": True, "input_tokens": True, "token_logprobs": True, "token_ranks": True}
    [answer] = served.generate(PROMPT, response=asked)
    assert all(token.rank == 1 and token.logprob < 0 for token in answer.tokens)
    assert math.isnan(answer.input_tokens[0].logprob)
    assert answer.input_tokens[1].rank >= 1


@needs_vllm
@pytest.mark.slow
def test_time_limits_and_cancelled_calls(served: Engine) -> None:
    stopping = {"max_new_tokens": 200, "min_new_tokens": 200}
    [late] = served.generate(PROMPT, stopping={**stopping, "time_limit_millis": 40})
    assert late.stop_reason == 4
    stream = served.start_stream(PROMPT, stopping=stopping)
    next(stream)
    stream.cancel()
    assert refused(lambda: served.generate(PROMPT, method=1, sampling={"typical_p": 0.5}),
                   grpc.StatusCode.INVALID_ARGUMENT)
    assert served.generate(PROMPT)[0].generated_token_count == 20
    assert served.terminate() == 0
