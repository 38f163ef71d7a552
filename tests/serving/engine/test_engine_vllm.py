"""The vLLM back end: its words for our parameters, and, where vLLM is installed, its answers."""

from __future__ import annotations

import asyncio
import math
import queue
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from tokenizers import Tokenizer

from llm_detox.generation.tokens import Vocabulary
from serving.engine import backend_vllm
from serving.engine.backend_vllm import VllmEngine, detail, installed, prompt_details
from serving.engine.jobs import ERROR, MAX_TOKENS, NOT_FINISHED, STOP_SEQUENCE, TIME_LIMIT, Job, Update
from serving.engine.metrics import Metrics
from serving.engine.settings import Settings
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


class FakeAsyncLlm:
    """Answers as vLLM's asynchronous engine does: one message a token, and an end to be told when nobody listens."""

    errored = False

    def __init__(self, tokens: list[int], pause: float = 0.0) -> None:
        self.tokens, self.pause, self.dropped, self.ended = tokens, pause, 0, False
        self.model_config = SimpleNamespace(max_model_len=64)

    async def generate(self, prompt: Any, parameters: Any, number: str) -> AsyncIterator[Any]:
        sent = 0
        try:
            for token in self.tokens:
                await asyncio.sleep(self.pause)
                sent += 1
                piece = SimpleNamespace(token_ids=[token], logprobs=None)
                yield SimpleNamespace(outputs=[piece], prompt_logprobs=None)
        finally:
            self.dropped += sent < len(self.tokens)

    def shutdown(self) -> None:
        self.ended = True


@pytest.fixture
def make(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A back end over a fake, and the news of jobs submitted to it."""
    engines = list[VllmEngine]()

    def build(fake: FakeAsyncLlm) -> tuple[VllmEngine, Any]:
        async def given(folder: Path, settings: Settings) -> FakeAsyncLlm:
            return fake

        monkeypatch.setattr(backend_vllm, "_make", given)
        monkeypatch.setattr(backend_vllm, "sampling_parameters", lambda parameters, eos: None)
        vocabulary = Vocabulary(Tokenizer.from_file(str(tiny_llama / "tokenizer.json")))
        engine = VllmEngine(tiny_llama, Settings("m", "127.0.0.1"), vocabulary, frozenset({1}), Metrics())
        engines.append(engine)

        def ask(**parameters: Any) -> tuple[Job, queue.Queue[Update]]:
            news: queue.Queue[Update] = queue.Queue()
            job = Job([2, 3], Parameters(**parameters), True, news.put)
            engine.submit([job])
            return job, news

        return engine, ask

    yield build
    for engine in engines:
        engine.stop()


def _read(news: queue.Queue[Update]) -> tuple[str, Update]:
    text = ""
    while True:
        update = news.get(timeout=30)
        text += update.text
        if update.reason != NOT_FINISHED:
            return text, update


def _ids(folder: Path, text: str) -> list[int]:
    return list(Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids)


def test_text_streams_and_ends_at_the_limit(make: Any, tiny_llama: Path) -> None:
    ids = _ids(tiny_llama, "naïve café 🙂 fox")
    engine, ask = make(FakeAsyncLlm(ids))
    assert not engine.healthy
    text, last = _read(ask(max_new_tokens=len(ids))[1])
    assert (text, last.reason, last.count) == ("naïve café 🙂 fox", MAX_TOKENS, len(ids))
    assert engine.healthy


def test_a_stop_sequence_ends_the_request_and_vllm_drops_it(make: Any, tiny_llama: Path) -> None:
    fake = FakeAsyncLlm(_ids(tiny_llama, "the fox and the dog and more"))
    _, ask = make(fake)
    text, last = _read(ask(max_new_tokens=50, stop_sequences=("x and",), include_stop_sequence=False)[1])
    assert (text, last.reason, last.stop_sequence) == ("the fo", STOP_SEQUENCE, "x and")
    _read(ask(max_new_tokens=1)[1])
    assert fake.dropped == 2


def test_time_limits_cancelled_calls_and_the_end_free_vllm(make: Any) -> None:
    fake = FakeAsyncLlm([5] * 10_000, pause=0.01)
    engine, ask = make(fake)
    assert _read(ask(max_new_tokens=9999, deadline=time.monotonic() + 0.2)[1])[1].reason == TIME_LIMIT
    job, news = ask(max_new_tokens=9999)
    news.get(timeout=30)
    engine.cancel(job)
    assert _read(news)[1].reason == ERROR
    _, left = ask(max_new_tokens=9999)
    left.get(timeout=30)
    assert asyncio.run_coroutine_threadsafe(engine._end(), engine._loop).result(30) is None
    assert _read(left)[1].reason == ERROR
    assert (fake.dropped, fake.ended) == (3, True)


def test_an_early_end_is_an_error(make: Any) -> None:
    _, ask = make(FakeAsyncLlm([5, 6]))
    _, last = _read(ask(max_new_tokens=9)[1])
    assert last.reason == ERROR
    assert "ended the request" in last.error


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
