"""One answer, from the first wait to its end: nothing of it is given on before it has been read."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from llm_detox.compare_ui.reading import NOTHING, AnswerScorer, Reading
from llm_detox.compare_ui.sides import Side
from llm_detox.errors import DetoxError

Status = Literal["waiting", "streaming", "done", "stopped", "failed"]
_SHORTEST_PAUSE = 0.08  # seconds between two states of an answer; nobody reads faster


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
