"""The client that blocks and the one that is awaited; addresses, deadlines and retries are the same code for both.

The awaited one stands on `grpc.aio` and `httpx.AsyncClient`, not on worker threads around the blocking one: a thread
that waits for an answer cannot be interrupted, so that a cancelled task would leave its request running and its place
in the server's batch taken; and hundreds of streams at once would need hundreds of threads.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import aclosing, closing
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from llm_detox.client.types import (
    AsyncTransport,
    Chunk,
    Deadline,
    Generation,
    GenerationError,
    Parameters,
    Prompt,
    Server,
    Transport,
)
from llm_detox.errors import UsageError

_SCHEMES = ("http:// or https:// (Caikit REST), grpc:// or grpcs:// (Caikit gRPC), fmaas:// or fmaass:// (TGIS gRPC), "
            "openai+http:// or openai+https://")
_ADDRESS = re.compile(r"(https?|grpcs?|fmaass?|openai\+https?)://")
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 5.0


class Client:
    """One model of one server.

    Args:
        url: the protocol and `host:port`: `http://`, `https://` for Caikit REST; `grpc://`, `grpcs://` for Caikit
            gRPC; `fmaas://`, `fmaass://` for TGIS gRPC; `openai+http://`, `openai+https://` for OpenAI-compatible
            servers, with or without a path in front of `/v1` (the s is for TLS).
        model_id: the name under which the model is served.
        timeout: seconds for a whole call, with its repetitions.
        retries: how often a call is repeated when the server is not there or is full.
        ca_file, cert_file, key_file: PEM files: who is trusted, and what this client shows.
        token: a bearer token.

    Raises:
        UsageError: the address has another form, or a file is missing.
    """

    def __init__(
        self, url: str, model_id: str = "", *, timeout: float = 60.0, retries: int = 2, ca_file: Path | None = None,
        cert_file: Path | None = None, key_file: Path | None = None, token: str | None = None,
    ) -> None:
        self.model_id, self.timeout, self.retries = model_id, timeout, retries
        self.server = Server(url, ca_file, cert_file, key_file, token)
        check_address(self.server)
        self._start()

    def _start(self) -> None:
        """What is opened with the client."""

    @property
    def takes_messages(self) -> bool:
        """Whether prompts may be conversations, to which the server applies the model's chat template."""
        return self.server.url.startswith("openai+")

    def _prepare(self, prompt: Prompt, parameters: dict[str, Any]) -> tuple[Parameters, Attempts]:
        if not isinstance(prompt, str) and not self.takes_messages:
            raise UsageError("this protocol takes a text, not a conversation", place=self.server.url,
                             remedy="apply the chat template, or ask an OpenAI-compatible server")
        return Parameters.of(parameters), Attempts(self.retries, Deadline(self.timeout))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.server.url!r}, {self.model_id!r})"


class TextGenerationClient(Client):
    """Text generation by one model of one server. Threads may share it; see `Client` for the arguments."""

    def _start(self) -> None:
        self._transport = open_transport(self.server)

    def generate(self, prompt: Prompt, **parameters: Any) -> Generation:
        """The whole answer.

        Args:
            prompt: the text to continue; at OpenAI-compatible servers also a conversation.
            parameters: see `llm_detox.client.types.Parameters`.

        Raises:
            GenerationError: with the status in `code`.
            UsageError: there is no such parameter, or the protocol takes no conversation.
        """
        asked, attempts = self._prepare(prompt, parameters)
        while True:
            try:
                return self._transport.generate(self.model_id, prompt, asked, attempts.deadline)
            except GenerationError as error:
                time.sleep(attempts.pause(error))

    def stream(self, prompt: Prompt, **parameters: Any) -> Generator[Chunk]:
        """The answer piece by piece as it arrives. Closing the iterator cancels the request.

        Raises:
            GenerationError: also in the middle of a stream; what arrived before stays valid.
            UsageError: there is no such parameter, or the protocol takes no conversation.
        """
        return self._stream(prompt, *self._prepare(prompt, parameters))

    def _stream(self, prompt: Prompt, asked: Parameters, attempts: Attempts) -> Generator[Chunk]:
        begun = False
        while True:
            try:
                with closing(self._transport.stream(self.model_id, prompt, asked, attempts.deadline)) as chunks:
                    for chunk in chunks:
                        begun = True
                        yield chunk
                return
            except GenerationError as error:
                if begun:  # the caller has seen a part of this answer; another one would not fit
                    raise
                time.sleep(attempts.pause(error))

    def close(self) -> None:
        """Close the connection."""
        self._transport.close()

    def __enter__(self) -> TextGenerationClient:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()


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


class Attempts:
    """How often a call may be tried, and when it is tried again."""

    def __init__(self, retries: int, deadline: Deadline) -> None:
        self.deadline, self._retries, self._made = deadline, retries, 0

    def pause(self, error: GenerationError) -> float:
        """Seconds until the next attempt: longer each time, not in step with other clients, not before the server
        wants it.

        Raises:
            GenerationError: the given one, if another attempt would not help or would be too late.
        """
        wait = min(_FIRST_PAUSE * 2.0**self._made, _LONGEST_PAUSE) * random.uniform(0.5, 1.5)  # noqa: S311
        wait = max(wait, error.retry_after or 0.0)
        if self._made >= self._retries or not error.may_be_repeated or wait >= self.deadline.left():
            raise error
        self._made += 1
        return wait


def is_address(source: str) -> bool:
    """Whether a model source is the address of a served one."""
    return bool(_ADDRESS.match(source))


def split_address(address: str) -> tuple[str, str]:
    """`grpc://host:port/org/model` -> (`grpc://host:port`, `org/model`)."""
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc}", parts.path.strip("/")


def open_transport(server: Server) -> Transport:
    """The transport that blocks.

    Raises:
        UsageError: the address has another form.
    """
    over_http, dialect, tls = _protocol(server)
    if over_http:
        from llm_detox.client.http import HttpTransport

        return HttpTransport(server, dialect)
    from llm_detox.client.grpc import GrpcTransport

    return GrpcTransport(server, dialect, tls=tls)


def open_async_transport(server: Server) -> AsyncTransport:
    """The transport that is awaited; called in the event loop that will use it.

    Raises:
        UsageError: the address has another form.
    """
    over_http, dialect, tls = _protocol(server)
    if over_http:
        from llm_detox.client.http import AsyncHttpTransport

        return AsyncHttpTransport(server, dialect)
    from llm_detox.client.grpc import AsyncGrpcTransport

    return AsyncGrpcTransport(server, dialect, tls=tls)


def check_address(server: Server) -> None:
    """Raises UsageError if the address has another form."""
    parts = urlsplit(server.url)
    if "://" not in server.url:
        raise UsageError("the address names no protocol", place=server.url,
                         remedy=f"http://{server.url}? {_SCHEMES}")
    if not parts.netloc or "@" in parts.netloc:
        raise UsageError("not the address of a server", place=server.url, remedy=_SCHEMES)
    if not is_address(server.url):
        raise UsageError(f"unknown protocol {parts.scheme!r}", place=server.url, remedy=_SCHEMES)


def _protocol(server: Server) -> tuple[bool, Any, bool]:
    """(whether it is spoken over HTTP, its dialect, whether over TLS); each library is loaded only where it is used.
    """
    check_address(server)
    scheme = urlsplit(server.url).scheme
    if scheme.startswith("openai+"):
        from llm_detox.client.openai import OpenAi

        return True, OpenAi(), scheme.endswith("https")
    if scheme.startswith("http"):
        from llm_detox.client.rest import CaikitRest

        return True, CaikitRest(), scheme == "https"
    if scheme.startswith("grpc"):
        from llm_detox.client.caikit import CaikitGrpc

        return False, CaikitGrpc(), scheme == "grpcs"
    from llm_detox.client.fmaas import FmaasGrpc

    return False, FmaasGrpc(), scheme == "fmaass"
