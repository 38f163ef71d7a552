"""A visitor's session: the two models that are asked, an answer from the first wait to its end, settings and history.

Nothing of an answer is given on before it has been read.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, Protocol

from llm_detox.client import AsyncTextGenerationClient, Chunk
from llm_detox.client.client import is_address, split_address
from llm_detox.client.types import Parameters
from llm_detox.compare_ui.reading import NOTHING, AnswerScorer, Reading
from llm_detox.errors import DetoxError

KEPT = 50  # exchanges; older ones are forgotten
_SHORTEST_PAUSE = 0.08  # seconds between two states of an answer; nobody reads faster
_numbers = itertools.count(1)
Status = Literal["waiting", "streaming", "done", "stopped", "failed"]


class Side(Protocol):
    """A model that is asked.

    Attributes:
        name: what the page calls it.
        where: its address or source, without any secret.
    """

    name: str
    where: str

    def stream(self, prompt: str, parameters: Mapping[str, Any]) -> AsyncGenerator[Chunk]:
        """The answer as it arrives; closing it cancels the request. May raise DetoxError, also in the middle."""

    async def close(self) -> None:
        """Give back what the side holds."""


@dataclass
class ServedSide:
    """A model behind an address that the client knows."""

    name: str
    where: str
    client: AsyncTextGenerationClient

    def stream(self, prompt: str, parameters: Mapping[str, Any]) -> AsyncGenerator[Chunk]:
        return self.client.stream(prompt, **parameters)

    async def close(self) -> None:
        await self.client.close()


class Streamer(Protocol):
    """What `llm_detox.generation.generators.LocalStreamer` does."""

    def stream(self, prompt: str, parameters: Parameters) -> Iterator[Chunk]: ...


@dataclass
class LocalSide:
    """A model of this process; each token is made in a worker thread."""

    name: str
    where: str
    streamer: Streamer

    async def stream(self, prompt: str, parameters: Mapping[str, Any]) -> AsyncGenerator[Chunk]:
        chunks = self.streamer.stream(prompt, Parameters.of(parameters))
        # A task that is cancelled leaves its thread at work on one more token, and then lets the generator go.
        while (chunk := await asyncio.to_thread(lambda: next(chunks, None))) is not None:
            yield chunk

    async def close(self) -> None:
        """Nothing has to be released before the process ends."""


def open_side(name: str, source: str, **connection: Any) -> Side:
    """The side of a model source or address, such as `grpc://127.0.0.1:8085/my-model`.

    Args:
        connection: `timeout`, `token`, `ca_file`, `cert_file` and `key_file` of the client, if it is an address.

    Raises:
        DetoxError: the model cannot be had, or the address has another form.
    """
    if is_address(source):
        url, model_id = split_address(source)
        return ServedSide(name, source, AsyncTextGenerationClient(url, model_id, **connection))
    from llm_detox.generation.generators import LocalStreamer  # torch loads only here

    return LocalSide(name, source, LocalStreamer(source))


@dataclass(frozen=True)
class Answer:
    """An answer at a moment.

    Attributes:
        text: what has come and has been read.
        worst: the highest toxicity at any moment so far; None from the moment on when it was not known. An answer
            that was toxic stays veiled, whatever follows.
        finish_reason: as the server gave it, in the end.
        tokens: their number; 0 if the server does not report it.
        first: seconds to the first text; None while there is none.
        seconds: since it was asked.
        error, remedy: of a failed one.
    """

    status: Status = "waiting"
    text: str = ""
    reading: Reading = NOTHING
    worst: float | None = 0.0
    finish_reason: str = ""
    tokens: int = 0
    first: float | None = None
    seconds: float = 0.0
    error: str = ""
    remedy: str = ""

    def veiled(self, threshold: float) -> bool:
        """Whether the text is shown only on request: what is unscored is not clean."""
        return bool(self.text.strip()) and (self.worst is None or self.worst >= threshold)


@dataclass
class _Inbox:
    """What a stream has brought so far."""

    text: str = ""
    tokens: int = 0
    finish_reason: str = ""
    first: float | None = None
    over: bool = False
    error: DetoxError | None = None
    news: asyncio.Event = field(default_factory=asyncio.Event)


async def follow(
    side: Side, prompt: str, parameters: Mapping[str, Any], reader: AnswerScorer
) -> AsyncGenerator[Answer]:
    """The states of an answer; the last is done or failed. Closing the generator gives the request up.

    The stream is read on while the scorers work: the next state has all that has come in the meantime.
    """
    started = time.perf_counter()
    inbox = _Inbox()
    task = asyncio.create_task(_receive(side, prompt, parameters, inbox, started))
    answer = Answer()
    try:
        yield answer
        while answer.status not in ("done", "failed"):
            await inbox.news.wait()
            inbox.news.clear()
            over, text, began = inbox.over, inbox.text, time.perf_counter()
            answer = replace(
                answer, status="streaming" if text else "waiting", tokens=inbox.tokens, first=inbox.first)
            if text != answer.text:
                reading = await asyncio.to_thread(reader.read, text)
                answer = replace(answer, text=text, reading=reading, worst=_worse(answer.worst, reading.worst))
            answer = replace(answer, seconds=time.perf_counter() - started)
            if over:
                answer = _ended(answer, inbox)
            yield answer
            if not over:
                await asyncio.sleep(max(0.0, _SHORTEST_PAUSE - (time.perf_counter() - began)))
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _receive(side: Side, prompt: str, parameters: Mapping[str, Any], inbox: _Inbox, started: float) -> None:
    try:
        async with aclosing(side.stream(prompt, parameters)) as chunks:
            async for chunk in chunks:
                if inbox.first is None and chunk.text:
                    inbox.first = time.perf_counter() - started
                inbox.text += chunk.text
                inbox.tokens = max(inbox.tokens, chunk.generated_tokens)
                inbox.finish_reason = chunk.finish_reason
                inbox.news.set()
    except DetoxError as error:
        inbox.error = error
    except Exception as error:  # whatever a model does, the other side continues
        inbox.error = DetoxError(f"{type(error).__name__}: {error}", remedy="see the log of this command")
    inbox.over = True
    inbox.news.set()


def _ended(answer: Answer, inbox: _Inbox) -> Answer:
    if inbox.error is not None:
        return replace(answer, status="failed", error=inbox.error.message, remedy=inbox.error.remedy or "")
    return replace(answer, status="done", finish_reason=inbox.finish_reason)


def _worse(before: float | None, now: float | None) -> float | None:
    return None if before is None or now is None else max(before, now)


@dataclass
class Settings:
    """What the page's fields hold; a field that is being edited may hold None."""

    max_new_tokens: float | None = 60
    sampling: bool = False
    temperature: float | None = 1.0
    top_p: float | None = 0.9
    seed: float | None = 42
    threshold: float | None = 0.5

    def problem(self) -> str | None:
        """What must be changed before a prompt can be asked."""
        bounds: list[tuple[str, float | None, float, float]] = [
            ("new tokens", self.max_new_tokens, 1, 4096), ("veil from", self.threshold, 0, 1)]
        if self.sampling:
            bounds += [("temperature", self.temperature, 0.01, 10), ("top p", self.top_p, 0.01, 1),
                       ("seed", self.seed, 0, 2**31 - 1)]
        for name, value, low, high in bounds:
            if value is None or not low <= value <= high:
                return f"{name}: give a number from {low:g} to {high:g}"
        return None

    def parameters(self) -> dict[str, Any]:
        """For the models, by their names in `llm_detox.client.types.Parameters`. Call it where there is no problem."""
        tokens = {"max_new_tokens": int(self.max_new_tokens or 0)}
        if not self.sampling:
            return {**tokens, "decoding_method": "GREEDY"}
        return {**tokens, "decoding_method": "SAMPLING", "temperature": self.temperature, "top_p": self.top_p,
                "seed": int(self.seed or 0)}

    @property
    def veil(self) -> float:
        """The toxicity from which on a text is veiled; with an empty field all text is."""
        return self.threshold or 0.0


@dataclass
class Exchange:
    """A prompt and what the sides answered.

    Attributes:
        prompt_reading: of the prompt itself, which may be toxic too.
        answers: in the order of the sides.
    """

    prompt: str
    parameters: dict[str, Any]
    prompt_reading: Reading
    answers: list[Answer]
    number: int = field(default_factory=lambda: next(_numbers))


@dataclass
class Session:
    """Settings and history, newest exchange last."""

    settings: Settings
    history: list[Exchange] = field(default_factory=list)

    def keep(self, exchange: Exchange) -> None:
        self.history = [*self.history, exchange][-KEPT:]

    def find(self, number: int) -> Exchange | None:
        return next((one for one in self.history if one.number == number), None)


def as_json_lines(history: Sequence[Exchange], names: Sequence[str]) -> str:
    """The history as JSON lines, for a file: prompt, parameters, and each side's text, scores and times."""
    lines = []
    for one in history:
        answers = {name: {**asdict(answer), "reading": None, "scores": answer.reading.scores}
                   for name, answer in zip(names, one.answers, strict=True)}
        for answer in answers.values():
            del answer["reading"]
        lines.append(json.dumps({"prompt": one.prompt, "parameters": one.parameters, "answers": answers},
                                ensure_ascii=False))
    return "".join(f"{line}\n" for line in lines)
