"""The client: chooses the protocol by the address, and repeats what is safe to repeat."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from llm_detox.client.transport import Deadline, Server, Transport
from llm_detox.client.types import Chunk, Generation, GenerationError, Parameters
from llm_detox.errors import UsageError

_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 5.0
_SCHEMES = "http:// or https:// (Caikit REST), grpc:// or grpcs:// (Caikit gRPC), fmaas:// or fmaass:// (TGIS gRPC)"


class TextGenerationClient:
    """Text generation by one model of one server. Threads may share it.

    Args:
        url: the protocol and `host:port`: `http://`, `https://` for Caikit REST; `grpc://`, `grpcs://` for Caikit
            gRPC; `fmaas://`, `fmaass://` for TGIS gRPC (the s is for TLS).
        model_id: the name under which the model is served.
        timeout: seconds for a whole call, with its repetitions.
        retries: how often a call is repeated when the server is not there or is full.
        ca_file, cert_file, key_file: PEM files: who is trusted, and what this client shows.
        token: a bearer token.

    Raises:
        UsageError: the address has another form.
    """

    def __init__(
        self, url: str, model_id: str = "", *, timeout: float = 60.0, retries: int = 2, ca_file: Path | None = None,
        cert_file: Path | None = None, key_file: Path | None = None, token: str | None = None,
    ) -> None:
        self.model_id, self.timeout, self.retries = model_id, timeout, retries
        self.server = Server(url, ca_file, cert_file, key_file, token)
        self._transport = _transport(self.server)

    def generate(self, text: str, **parameters: Any) -> Generation:
        """The whole continuation of a text.

        Args:
            text: the prompt.
            parameters: see `llm_detox.client.types.Parameters`.

        Raises:
            GenerationError: with the status in `code`.
            UsageError: there is no such parameter.
        """
        asked, deadline = Parameters.of(parameters), Deadline(self.timeout)
        for attempt in range(self.retries + 1):
            try:
                return self._transport.generate(self.model_id, text, asked, deadline)
            except GenerationError as error:
                self._pause(attempt, error, deadline)
        raise AssertionError("unreachable")

    def stream(self, text: str, **parameters: Any) -> Iterator[Chunk]:
        """The continuation of a text, piece by piece as it comes. Ending the iteration cancels the request.

        Raises:
            GenerationError: also in mid-stream; what came before stays valid.
            UsageError: there is no such parameter.
        """
        asked, deadline = Parameters.of(parameters), Deadline(self.timeout)
        return self._stream(text, asked, deadline)

    def _stream(self, text: str, asked: Parameters, deadline: Deadline) -> Iterator[Chunk]:
        for attempt in range(self.retries + 1):
            begun = False
            try:
                for chunk in self._transport.stream(self.model_id, text, asked, deadline):
                    begun = True
                    yield chunk
                return
            except GenerationError as error:
                if begun:  # the caller has seen a part of this answer; another one would not fit
                    raise
                self._pause(attempt, error, deadline)

    def _pause(self, attempt: int, error: GenerationError, deadline: Deadline) -> None:
        """Wait before the next attempt, longer each time and not in step with other clients; or give up."""
        pause = min(_FIRST_PAUSE * 2**attempt, _LONGEST_PAUSE) * random.uniform(0.5, 1.5)  # noqa: S311
        if attempt >= self.retries or not error.may_be_repeated or pause >= deadline.left():
            raise error
        time.sleep(pause)

    def close(self) -> None:
        """Close the connection."""
        self._transport.close()

    def __enter__(self) -> TextGenerationClient:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"TextGenerationClient({self.server.url!r}, {self.model_id!r})"


def _transport(server: Server) -> Transport:
    parts = urlsplit(server.url)
    if not parts.netloc or "@" in parts.netloc:
        raise UsageError("not an address of a server", place=server.url, remedy=_SCHEMES)
    # Each protocol's library loads only where it is used.
    if parts.scheme in ("http", "https"):
        from llm_detox.client.rest import CaikitRest

        return CaikitRest(server)
    if parts.scheme in ("grpc", "grpcs"):
        from llm_detox.client.caikit import CaikitGrpc

        return CaikitGrpc(server, tls=parts.scheme == "grpcs")
    if parts.scheme in ("fmaas", "fmaass"):
        from llm_detox.client.fmaas import FmaasGrpc

        return FmaasGrpc(server, tls=parts.scheme == "fmaass")
    raise UsageError(f"unknown protocol {parts.scheme!r}", place=server.url, remedy=_SCHEMES)
