"""A client whose answers a guard judges before anybody sees them; what does not pass is withheld.

Streams are judged sentence by sentence where the guard can do that: a sentence is held back until it is whole and has
passed, alone and together with what went before. Judging only at the end would leave nothing of streaming, and judging
pieces of sentences would judge what nobody has said yet. The price is that the reader of a stream has seen the
sentences before the one that is withheld; who cannot have that asks for the whole answer, which is withheld as a whole.
A guard that needs a model call for each judgement judges at the end.

A text that could not be judged is withheld: unjudged is not harmless.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import aclosing, closing
from dataclasses import dataclass
from typing import Any, Protocol

from llm_detox.client.client import AsyncTextGenerationClient, TextGenerationClient
from llm_detox.client.types import Chunk, Generation, Prompt
from llm_detox.detector.pieces import Sentences, sentences_of

WITHHELD = "WITHHELD"


@dataclass(frozen=True, slots=True)
class GuardVerdict:
    """What a guard says of a text.

    Attributes:
        withheld: whether nobody may see it.
        reason: for people.
        score: toxicity in [0, 1], of a guard that scores.
        seconds: what judging took, for the whole answer so far.
    """

    withheld: bool
    reason: str
    score: float | None = None
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Guarded:
    """A judged answer, or a judged piece of a stream.

    `text` is empty where it is withheld, and `finish_reason` is WITHHELD then. Token details are not passed on: they
    would tell the text.
    """

    text: str
    finish_reason: str
    generated_tokens: int
    input_token_count: int
    verdict: GuardVerdict


class Guard(Protocol):
    """Judges answers; threads may share it.

    Attributes:
        name: for people.
        by_sentence: whether it is quick enough to be asked about each sentence.
    """

    name: str
    by_sentence: bool

    def judge(self, prompt: Prompt, shown: str, sentences: Sequence[str]) -> GuardVerdict:
        """The verdict on the next sentences of an answer of which `shown` has passed."""


def judge_whole(guard: Guard, prompt: Prompt, text: str) -> GuardVerdict:
    """The verdict on a whole answer: the one that its stream would end with."""
    started = time.perf_counter()
    parts = sentences_of(text) if guard.by_sentence else [text]
    verdict = guard.judge(prompt, "", parts) if text.strip() else _NOTHING
    return GuardVerdict(verdict.withheld, verdict.reason, verdict.score, time.perf_counter() - started)


_NOTHING = GuardVerdict(False, "there is no text to judge")


class _StreamFilter:
    """Cuts one stream into what the guard judges, and ends it where the guard withholds."""

    def __init__(self, guard: Guard, prompt: Prompt) -> None:
        self._guard, self._prompt = guard, prompt
        self._sentences = Sentences()
        self._shown, self._held = "", ""
        self._verdict = _NOTHING
        self.closed = False

    def pieces(self, chunk: Chunk) -> list[tuple[str, Chunk, bool]]:
        """(text to be judged now, the chunk it came with, whether it is the last)."""
        last = chunk.finish_reason != "NOT_FINISHED"
        if self._guard.by_sentence:
            ready = self._sentences.feed(chunk.text) + (self._sentences.end() if last else [])
        else:
            self._held += chunk.text
            ready = [self._held] if last else []
        if last and not ready:
            ready = [""]  # the end itself has to be told
        return [(text, chunk, last and number == len(ready)) for number, text in enumerate(ready, start=1)]

    def judge(self, piece: tuple[str, Chunk, bool]) -> Guarded:
        """Takes as long as the guard does."""
        text, chunk, last = piece
        started = time.perf_counter()
        verdict = self._guard.judge(self._prompt, self._shown, [text]) if text.strip() else self._verdict
        scores = [one for one in (self._verdict.score, verdict.score) if one is not None]
        self._verdict = GuardVerdict(verdict.withheld, verdict.reason, max(scores, default=None),
                                     self._verdict.seconds + time.perf_counter() - started)
        self._shown += text
        self.closed = verdict.withheld
        reason = WITHHELD if verdict.withheld else chunk.finish_reason if last else "NOT_FINISHED"
        return Guarded("" if verdict.withheld else text, reason, chunk.generated_tokens, chunk.input_token_count,
                       self._verdict)


def _guarded(answer: Generation, verdict: GuardVerdict) -> Guarded:
    text, reason = ("", WITHHELD) if verdict.withheld else (answer.text, answer.finish_reason)
    return Guarded(text, reason, answer.generated_tokens, answer.input_token_count, verdict)


class GuardedClient:
    """A client and a guard in front of its answers. Threads may share it."""

    def __init__(self, client: TextGenerationClient, guard: Guard) -> None:
        self.client, self.guard = client, guard

    def generate(self, prompt: Prompt, **parameters: Any) -> Guarded:
        """The whole answer, or none of it; raises as the client does."""
        answer = self.client.generate(prompt, **parameters)
        return _guarded(answer, judge_whole(self.guard, prompt, answer.text))

    def stream(self, prompt: Prompt, **parameters: Any) -> Generator[Guarded]:
        """Sentences that have passed. The first one that has not ends the stream and the request."""
        return self._stream(self.client.stream(prompt, **parameters), _StreamFilter(self.guard, prompt))

    def _stream(self, chunks: Generator[Chunk], stream_filter: _StreamFilter) -> Generator[Guarded]:
        with closing(chunks):
            for chunk in chunks:
                for piece in stream_filter.pieces(chunk):
                    yield stream_filter.judge(piece)
                    if stream_filter.closed:
                        return


class AsyncGuardedClient:
    """The same, awaited: the guard works in a thread, so that other requests continue."""

    def __init__(self, client: AsyncTextGenerationClient, guard: Guard) -> None:
        self.client, self.guard = client, guard

    async def generate(self, prompt: Prompt, **parameters: Any) -> Guarded:
        """As `GuardedClient.generate`."""
        answer = await self.client.generate(prompt, **parameters)
        return _guarded(answer, await asyncio.to_thread(judge_whole, self.guard, prompt, answer.text))

    def stream(self, prompt: Prompt, **parameters: Any) -> AsyncGenerator[Guarded]:
        """As `GuardedClient.stream`."""
        return self._stream(self.client.stream(prompt, **parameters), _StreamFilter(self.guard, prompt))

    async def _stream(self, chunks: AsyncGenerator[Chunk], stream_filter: _StreamFilter) -> AsyncGenerator[Guarded]:
        async with aclosing(chunks):
            async for chunk in chunks:
                for piece in stream_filter.pieces(chunk):
                    yield await asyncio.to_thread(stream_filter.judge, piece)
                    if stream_filter.closed:
                        return
