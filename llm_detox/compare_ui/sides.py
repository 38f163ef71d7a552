"""The two models of a comparison: a served one, or one that is loaded in this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from llm_detox.client import AsyncTextGenerationClient, Chunk
from llm_detox.client.protocols import is_address, split_address
from llm_detox.client.types import Parameters


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
    """What `llm_detox.generation.streaming.LocalStreamer` does."""

    def stream(self, prompt: str, parameters: Parameters) -> Generator[Chunk]: ...


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
    from llm_detox.generation.streaming import LocalStreamer  # torch loads only here

    return LocalSide(name, source, LocalStreamer(source))
