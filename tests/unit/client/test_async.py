"""The client that is awaited answers as the one that blocks, and what is cancelled is cancelled at the server."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, aclosing
from typing import Any

import pytest

from llm_detox.client import AsyncTextGenerationClient, GenerationError, TextGenerationClient
from llm_detox.client.fmaas import messages
from llm_detox.errors import UsageError
from tests.helpers.answering import ANSWER, caikit, event, fmaas_server, http_server, openai, reply, silent_server

PIECES = ["one", " two", " three ☕"]


def tgis(pieces: list[str] = PIECES) -> AbstractContextManager[str]:
    kinds = messages()

    def whole(request: Any, context: Any) -> Any:
        return kinds.BatchedGenerationResponse(responses=[{
            "text": "".join(pieces), "generated_token_count": len(pieces), "stop_reason": 1}])

    def stream(request: Any, context: Any) -> Iterator[Any]:
        for number, text in enumerate(pieces, 1):
            yield kinds.GenerationResponse(text=text, generated_token_count=number,
                                           stop_reason=int(number == len(pieces)))

    return fmaas_server(whole, stream)


SERVERS: dict[str, tuple[str, Callable[[], AbstractContextManager[str]]]] = {
    "rest": ("", lambda: http_server(caikit(PIECES))), "openai": ("openai+", lambda: http_server(openai(PIECES))),
    "fmaas": ("", tgis)}


@pytest.mark.parametrize("name", SERVERS)
def test_awaited_answers_are_those_of_the_client_that_blocks(name: str) -> None:
    prefix, server = SERVERS[name]

    async def awaited(url: str) -> tuple[Any, list[Any]]:
        async with AsyncTextGenerationClient(url, "x") as client:
            return await client.generate("a"), [chunk async for chunk in client.stream("a")]

    with server() as address:
        url = prefix + address
        answer, chunks = asyncio.run(awaited(url))
        with TextGenerationClient(url, "x") as client:
            assert answer == client.generate("a")
            assert chunks == list(client.stream("a"))
    assert answer.text == "".join(chunk.text for chunk in chunks) == "".join(PIECES)
    assert len(chunks) == len(PIECES)


def test_errors_repetitions_and_refusals_are_the_same() -> None:
    seen: list[int] = []

    def answer(handler: Any) -> None:
        seen.append(1)
        reply(handler, 200 if len(seen) == 3 else 503, json.dumps(ANSWER).encode())

    async def ask(url: str) -> None:
        async with AsyncTextGenerationClient(url, "x", retries=2) as client:
            assert (await client.generate("a")).text == " fine"
            with pytest.raises(UsageError, match="'max_tokens'"):
                await client.generate("a", max_tokens=1)
            with pytest.raises(UsageError, match="takes a text"):
                client.stream([{"role": "user", "content": "a"}])

    with http_server(answer) as url:
        asyncio.run(ask(url))
    assert len(seen) == 3

    async def fail(url: str) -> str:
        async with AsyncTextGenerationClient(url, "x", retries=3) as client:
            with pytest.raises(GenerationError) as caught:
                await client.generate("a")
            return caught.value.code

    with http_server(lambda handler: reply(handler, 400, b"{}")) as url:
        assert asyncio.run(fail(url)) == "INVALID_ARGUMENT"


@pytest.mark.parametrize("scheme", ["http", "grpc", "fmaas", "openai+http"])
def test_a_silent_server_costs_no_more_than_the_deadline(scheme: str) -> None:
    async def ask(address: str) -> list[str]:
        codes = []
        async with AsyncTextGenerationClient(f"{scheme}://{address}", "x", timeout=0.5) as client:
            for call in (client.generate("a"), anext(client.stream("a"))):
                with pytest.raises(GenerationError) as caught:
                    await call
                codes.append(caught.value.code)
        return codes

    with silent_server() as address:
        started = time.monotonic()
        assert set(asyncio.run(ask(address))) <= {"DEADLINE_EXCEEDED", "UNAVAILABLE"}
        assert time.monotonic() - started < 5


@pytest.fixture
def gone() -> threading.Event:
    """Set when a server notices that its client has left."""
    return threading.Event()


def endless_rest(gone: threading.Event) -> Callable[[Any], None]:
    def answer(handler: Any) -> None:
        handler.send_response(200)
        handler.end_headers()
        try:
            while not gone.is_set():
                handler.wfile.write(event("x") if "streaming" in handler.path else b" ")
                time.sleep(0.01)
        except OSError:
            gone.set()

    return answer


def endless_tgis(gone: threading.Event) -> AbstractContextManager[str]:
    def whole(request: Any, context: Any) -> Any:
        context.add_callback(gone.set)
        gone.wait(20)
        return messages().BatchedGenerationResponse(responses=[{}])

    def stream(request: Any, context: Any) -> Iterator[Any]:
        context.add_callback(gone.set)
        while not gone.is_set():
            yield messages().GenerationResponse(text="x")
            time.sleep(0.01)

    return fmaas_server(whole, stream)


@pytest.mark.parametrize("protocol", ["rest", "fmaas"])
@pytest.mark.parametrize("way", ["generate", "stream", "left stream"])
def test_a_cancelled_task_cancels_its_request(protocol: str, way: str, gone: threading.Event) -> None:
    async def follow(client: AsyncTextGenerationClient, pieces: int | None) -> None:
        count = 0
        async with aclosing(client.stream("a")) as chunks:
            async for _ in chunks:
                count += 1
                if count == pieces:
                    break

    async def ask(url: str) -> None:
        async with AsyncTextGenerationClient(url, "x", timeout=30) as client:
            if way == "left stream":
                await follow(client, 3)
            else:
                task = asyncio.create_task(client.generate("a") if way == "generate" else follow(client, None))
                await asyncio.sleep(0.3)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            assert await asyncio.to_thread(gone.wait, 10), "the server still works for nobody"

    with http_server(endless_rest(gone)) if protocol == "rest" else endless_tgis(gone) as url:
        asyncio.run(ask(url))


@pytest.mark.parametrize("protocol", ["rest", "fmaas"])
def test_a_left_stream_of_the_client_that_blocks_is_cancelled_too(protocol: str, gone: threading.Event) -> None:
    with (http_server(endless_rest(gone)) if protocol == "rest" else endless_tgis(gone) as url,
          TextGenerationClient(url, "x", timeout=30) as client):
        chunks = client.stream("a")
        next(chunks)
        chunks.close()
        assert gone.wait(10)


def test_no_limit_of_connections_makes_requests_wait() -> None:
    together, most, lock = 0, 0, threading.Lock()

    def answer(handler: Any) -> None:
        nonlocal together, most
        with lock:
            together += 1
            most = max(most, together)
        time.sleep(0.5)
        with lock:
            together -= 1
        reply(handler, 200, json.dumps(ANSWER).encode())

    async def ask(url: str) -> int:
        async with AsyncTextGenerationClient(url, "x") as client:
            return len(await asyncio.gather(*(client.generate("a") for _ in range(120))))

    with http_server(answer) as url:
        assert asyncio.run(ask(url)) == 120
    assert most > 100
