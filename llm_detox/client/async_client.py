"""The client that is awaited.

It stands on `grpc.aio` and `httpx.AsyncClient`, not on worker threads around the blocking client: a thread that waits
for an answer cannot be interrupted, so that a cancelled task would leave its request running and its place in the
server's batch taken; and hundreds of streams at once would need hundreds of threads. What is sent, how answers are read
and when a call is repeated is the same code for both clients.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from types import TracebackType
from typing import Any

from llm_detox.client.client import Attempts, Client
from llm_detox.client.protocols import open_async_transport
from llm_detox.client.transport import AsyncTransport
from llm_detox.client.types import Chunk, Generation, GenerationError, Parameters, Prompt


class AsyncTextGenerationClient(Client):
    """Text generation by one model of one server, for one event loop; see `Client` for the arguments.

        async with AsyncTextGenerationClient("grpc://127.0.0.1:8085", "llm-detox") as client:
            print((await client.generate("The best thing about", max_new_tokens=24)).text)

    A cancelled task cancels its request.
    """

    _opened: AsyncTransport | None = None

    async def generate(self, prompt: Prompt, **parameters: Any) -> Generation:
        """As `TextGenerationClient.generate`."""
        asked, attempts = self._prepare(prompt, parameters)
        while True:
            try:
                return await self._transport.generate(self.model_id, prompt, asked, attempts.deadline)
            except GenerationError as error:
                await asyncio.sleep(attempts.pause(error))

    def stream(self, prompt: Prompt, **parameters: Any) -> AsyncGenerator[Chunk]:
        """As `TextGenerationClient.stream`. Who may leave the loop early wraps it in `contextlib.aclosing`."""
        return self._stream(prompt, *self._prepare(prompt, parameters))

    async def _stream(self, prompt: Prompt, asked: Parameters, attempts: Attempts) -> AsyncGenerator[Chunk]:
        begun = False
        while True:
            try:
                chunks = self._transport.stream(self.model_id, prompt, asked, attempts.deadline)
                async with aclosing(chunks):
                    async for chunk in chunks:
                        begun = True
                        yield chunk
                return
            except GenerationError as error:
                if begun:  # the caller has seen a part of this answer; another one would not fit
                    raise
                await asyncio.sleep(attempts.pause(error))

    @property
    def _transport(self) -> AsyncTransport:
        if self._opened is None:  # a channel belongs to the loop in which it is made
            self._opened = open_async_transport(self.server)
        return self._opened

    async def close(self) -> None:
        """Close the connection."""
        if self._opened is not None:
            await self._opened.close()

    async def __aenter__(self) -> AsyncTextGenerationClient:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None,
                        trace: TracebackType | None) -> None:
        await self.close()
