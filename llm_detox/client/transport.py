"""What the protocols have in common: how a server is reached, and what each of them offers."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from llm_detox.client.types import Chunk, Generation, Parameters, Prompt
from llm_detox.errors import UsageError


@dataclass(frozen=True)
class Server:
    """The address of a server, and what proves identity. `token` is sent as a bearer token and never shown."""

    url: str
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    token: str | None = None

    def __post_init__(self) -> None:
        if (self.cert_file is None) != (self.key_file is None):
            raise UsageError("a client certificate needs its key, and a key its certificate", place=self.url,
                             remedy="give both, or neither")
        for file in (self.ca_file, self.cert_file, self.key_file):
            if file is not None and not file.is_file():
                raise UsageError("no such file", place=str(file), remedy="give PEM files")

    def __repr__(self) -> str:
        return f"Server({self.url!r})"

    @property
    def target(self) -> str:
        """host:port."""
        return urlsplit(self.url).netloc

    @property
    def is_local(self) -> bool:
        """The environment's proxies are not used between two processes of one machine."""
        return urlsplit(self.url).hostname in ("localhost", "127.0.0.1", "::1")


class Deadline:
    """A point in time until which a call may last."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds left, never below a thousandth."""
        return max(self._end - time.monotonic(), 0.001)

    def check(self) -> None:
        """Raise TimeoutError if the time is over."""
        if time.monotonic() >= self._end:
            raise TimeoutError


class Transport(Protocol):
    """One protocol to one server. Prompts are conversations only if `takes_messages` says so."""

    takes_messages: bool

    def generate(self, model_id: str, prompt: Prompt, parameters: Parameters, deadline: Deadline) -> Generation: ...

    def stream(self, model_id: str, prompt: Prompt, parameters: Parameters,
               deadline: Deadline) -> Generator[Chunk]: ...

    def close(self) -> None: ...


class AsyncTransport(Protocol):
    """The same, awaited."""

    takes_messages: bool

    async def generate(self, model_id: str, prompt: Prompt, parameters: Parameters,
                       deadline: Deadline) -> Generation: ...

    def stream(self, model_id: str, prompt: Prompt, parameters: Parameters,
               deadline: Deadline) -> AsyncGenerator[Chunk]: ...

    async def close(self) -> None: ...
