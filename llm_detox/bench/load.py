"""How a served model bears load: so many requests in flight, level after level, each answer timed piece by piece.

The load is closed: a request is sent when another has ended, so that exactly so many are in flight. Every level asks
the same prompts. Nothing is repeated: a request that fails is counted by its code, and its time counts nowhere.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from itertools import cycle, islice
from typing import Any

from llm_detox.client.client import AsyncTextGenerationClient
from llm_detox.client.types import Chunk, Generation, GenerationError
from llm_detox.guard.filter import WITHHELD, AsyncGuardedClient, Guard, Guarded
from llm_detox.progress import task

_TEXT = ("the best thing about my neighbours is that they always bring fresh bread from market when it rains and "
         "children sing old songs while we talk about work weather music travel books and many other things")
_WARM_UPS = 4
QUANTILES = (50, 95, 99)


@dataclass(frozen=True)
class Load:
    """What is asked.

    Attributes:
        levels: numbers of requests in flight.
        requests: of a level, at least; no level has fewer than four rounds of its requests in flight.
        parameters: of each request.
        prompts: asked in turn; every level begins with the first.
        streams: whether answers are streamed. Without, there is no time to the first token.
    """

    levels: Sequence[int]
    requests: int
    parameters: Mapping[str, Any]
    prompts: Sequence[str]
    streams: bool = True

    def of_level(self, level: int) -> Iterator[str]:
        return islice(cycle(self.prompts), self.size(level))

    def size(self, level: int) -> int:
        return max(self.requests, 4 * level)


@dataclass(slots=True)
class Sample:
    """One request, in seconds from its start. `code` is that of its error."""

    seconds: float = 0.0
    first: float | None = None
    gaps: list[float] = field(default_factory=list)
    tokens: int = 0
    code: str | None = None
    withheld: bool = False
    judging: float | None = None


@dataclass(frozen=True)
class Distribution:
    """Times in milliseconds: their mean and percentiles."""

    mean: float
    p50: float
    p95: float
    p99: float


@dataclass(frozen=True)
class LevelFigures:
    """What came of a level; a distribution is None where there are no such times.

    Attributes:
        way: "plain", or "guarded" with the guard.
        in_flight: requests at once.
        errors: code -> number of requests.
        inter_token_ms: between two pieces of a stream.
        guard_ms: what the guard took for an answer.
        withheld: answers.
        client_busy: processor time of this process over wall time.
    """

    way: str
    in_flight: int
    requests: int
    errors: dict[str, int]
    seconds: float
    tokens: int
    tokens_per_second: float
    requests_per_second: float
    first_token_ms: Distribution | None
    inter_token_ms: Distribution | None
    end_to_end_ms: Distribution | None
    guard_ms: Distribution | None
    withheld: int
    client_busy: float


@dataclass(frozen=True)
class LoadFigures:
    """The levels that were measured; not all of them where it was interrupted."""

    levels: list[LevelFigures]
    interrupted: bool


@dataclass(frozen=True)
class BenchReport:
    """The `bench.json`: what was asked, and the fields of `LoadFigures`.

    Attributes:
        about: the answers that were asked for, in words.
        guard: its name.
    """

    address: str
    model: str
    about: str
    guard: str | None
    levels: list[LevelFigures]
    interrupted: bool


def mixed_prompts(count: int = 64, seed: int = 1) -> list[str]:
    """Prompts of 4 to 40 words, the same for the same seed."""
    chance, words = random.Random(seed), _TEXT.split()  # noqa: S311
    return [" ".join(chance.choices(words, k=chance.randint(4, 40))) for _ in range(count)]


def bench(client_options: Mapping[str, Any], load: Load, guard: Guard | None = None) -> LoadFigures:
    """Measure level after level. Ctrl-C ends it, and what was measured until then is kept.

    Args:
        client_options: arguments of `AsyncTextGenerationClient`.
        load: what is asked.
        guard: each level is then measured twice, without and with it.

    Raises:
        GenerationError: the server does not answer even one request.
    """
    levels: list[LevelFigures] = []
    interrupted = False
    try:
        asyncio.run(_sweep({**client_options, "retries": 0}, load, guard, levels.append))
    except KeyboardInterrupt:
        interrupted = True
    return LoadFigures(levels, interrupted)


async def _sweep(client_options: Mapping[str, Any], load: Load, guard: Guard | None,
                 keep: Callable[[LevelFigures], None]) -> None:
    async with AsyncTextGenerationClient(**client_options) as client:
        await client.generate(load.prompts[0], **load.parameters)  # raises where there is nothing to measure
        await asyncio.gather(*(_one(client, prompt, load) for prompt in load.prompts[:_WARM_UPS]))
        ways: list[tuple[str, AsyncTextGenerationClient | AsyncGuardedClient]] = [("plain", client)]
        if guard is not None:
            ways.append(("guarded", AsyncGuardedClient(client, guard)))
        for level in load.levels:
            for name, asked in ways:
                keep(await _level(asked, load, level, name))


async def _level(client: AsyncTextGenerationClient | AsyncGuardedClient, load: Load, level: int,
                 name: str) -> LevelFigures:
    samples: list[Sample] = []
    prompts = load.of_level(level)
    with task(f"{level} in flight, {name}", load.size(level), "requests") as work:

        async def ask() -> None:
            for prompt in prompts:
                samples.append(await _one(client, prompt, load))
                work.advance()

        started, busy = time.perf_counter(), time.process_time()
        running = [asyncio.create_task(ask()) for _ in range(level)]
        try:
            await asyncio.gather(*running)
        finally:
            for one in running:
                one.cancel()
        seconds = time.perf_counter() - started
    return summary(samples, level, seconds, (time.process_time() - busy) / seconds, name)


async def _one(client: AsyncTextGenerationClient | AsyncGuardedClient, prompt: str, load: Load) -> Sample:
    sample, started = Sample(), time.perf_counter()
    try:
        if load.streams:
            await _follow(client.stream(prompt, **load.parameters), sample, started)
        else:
            _note(await client.generate(prompt, **load.parameters), sample)
    except GenerationError as error:
        sample.code = error.code
    sample.seconds = time.perf_counter() - started
    return sample


async def _follow(pieces: AsyncGenerator[Chunk] | AsyncGenerator[Guarded], sample: Sample, started: float) -> None:
    last, pieces_with_text, counted = started, 0, 0
    async with aclosing(pieces):
        async for piece in pieces:
            # Tokens without text come too: a character may need several. The last piece may only tell the counts.
            unfinished = piece.finish_reason == "NOT_FINISHED"
            if piece.text or (unfinished and piece.generated_tokens > counted):
                now = time.perf_counter()
                if sample.first is None:
                    sample.first = now - started
                else:
                    sample.gaps.append(now - last)
                last, pieces_with_text = now, pieces_with_text + 1
            counted = max(counted, piece.generated_tokens)
            _note(piece, sample)
    sample.tokens = sample.tokens or pieces_with_text


def _note(piece: Chunk | Generation | Guarded, sample: Sample) -> None:
    sample.tokens = piece.generated_tokens
    if isinstance(piece, Guarded):
        sample.withheld, sample.judging = piece.finish_reason == WITHHELD, piece.verdict.seconds


def summary(samples: Sequence[Sample], level: int, seconds: float, busy: float, way: str = "plain") -> LevelFigures:
    """The figures of a level: of its requests, in `seconds` of wall time, with `busy` of them on a processor here."""
    good = [one for one in samples if one.code is None]
    tokens = sum(one.tokens for one in good)
    return LevelFigures(
        way=way, in_flight=level, requests=len(samples),
        errors=dict(sorted(Counter(one.code for one in samples if one.code is not None).items())),
        seconds=seconds, tokens=tokens, tokens_per_second=tokens / seconds, requests_per_second=len(good) / seconds,
        first_token_ms=distribution([one.first for one in good if one.first is not None]),
        inter_token_ms=distribution([gap for one in good for gap in one.gaps]),
        end_to_end_ms=distribution([one.seconds for one in good]),
        guard_ms=distribution([one.judging for one in good if one.judging is not None]),
        withheld=sum(one.withheld for one in good), client_busy=busy)


def distribution(seconds: Sequence[float]) -> Distribution | None:
    """Mean and percentiles in milliseconds."""
    if not seconds:
        return None
    values = sorted(seconds)
    return Distribution(1000 * math.fsum(values) / len(values),
                        *(1000 * percentile(values, share) for share in QUANTILES))


def percentile(values: Sequence[float], share: float) -> float:
    """Of sorted values, with linear interpolation between neighbours (numpy's default)."""
    place = (len(values) - 1) * share / 100
    below = math.floor(place)
    above = min(below + 1, len(values) - 1)
    return values[below] + (values[above] - values[below]) * (place - below)
