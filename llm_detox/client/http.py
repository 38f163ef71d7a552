"""The protocols over HTTP share this: one connection, server-sent events, failures in our words. Only the waiting
differs between the two transports below; what is sent and read is decided in `HttpCalls` and in the dialects."""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncGenerator, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import httpx

from llm_detox.client.types import Chunk, Deadline, Generation, GenerationError, Parameters, Prompt, Server

_CODES = {400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "NOT_FOUND",
          408: "DEADLINE_EXCEEDED", 413: "INVALID_ARGUMENT", 422: "INVALID_ARGUMENT", 429: "RESOURCE_EXHAUSTED",
          499: "CANCELLED", 501: "UNIMPLEMENTED", 502: "UNAVAILABLE", 503: "UNAVAILABLE", 504: "DEADLINE_EXCEEDED"}
_DONE = b"[DONE]"
Body = dict[str, Any]


class ChunkReader(Protocol):
    """Makes chunks of one stream's events."""

    def read(self, value: Body) -> Iterator[Chunk]:
        """Of one event; KeyError, TypeError or ValueError if it has an unexpected form."""

    def end(self) -> Iterator[Chunk]:
        """What was held back until the stream ended."""


class HttpDialect(Protocol):
    """What one protocol sends and answers."""

    name: str
    takes_messages: bool
    codes: Mapping[int, str]  # HTTP statuses that mean something else here than elsewhere

    def request(self, model_id: str, prompt: Prompt, parameters: Parameters, *, stream: bool) -> tuple[str, Body]:
        """Path and body; ValueError if the protocol cannot express a parameter."""

    def generation(self, value: Body) -> Generation:
        """Of an answer; KeyError, TypeError, IndexError or ValueError if it has an unexpected form."""

    def fault(self, kind: str, value: Body) -> int | None:
        """The HTTP status of a stream's event, if it is an error."""

    def reader(self) -> ChunkReader: ...


class HttpCalls:
    """Requests and answers of one dialect at one server, without any waiting."""

    def __init__(self, server: Server, dialect: HttpDialect) -> None:
        self.server, self.dialect = server, dialect

    def options(self) -> dict[str, Any]:
        """Of httpx's clients. Redirects are not followed: a token would go to another host."""
        server, base = self.server, self.server.url.rstrip("/")
        if base.startswith("openai+"):
            base = base.removeprefix("openai+").removesuffix("/v1")
        verify: ssl.SSLContext | bool = True
        if base.startswith("https"):
            verify = ssl.create_default_context(cafile=str(server.ca_file) if server.ca_file else None)
            if server.cert_file and server.key_file:
                verify.load_cert_chain(server.cert_file, server.key_file)
        headers = {"authorization": f"Bearer {server.token}"} if server.token else {}
        return {"base_url": base, "verify": verify, "headers": headers, "follow_redirects": False,
                "trust_env": not server.is_local, "limits": httpx.Limits(max_connections=None)}

    def request(self, model_id: str, prompt: Prompt, parameters: Parameters, *, stream: bool) -> tuple[str, Body]:
        try:
            return self.dialect.request(model_id, prompt, parameters, stream=stream)
        except ValueError as error:
            raise GenerationError("INVALID_ARGUMENT", str(error), place=self.server.url) from None

    def generation(self, answer: httpx.Response, content: bytes) -> Generation:
        if answer.status_code != 200:
            raise self.refusal(answer.status_code, content, answer.headers)
        try:
            return self.dialect.generation(self._json(content))
        except (KeyError, TypeError, IndexError, ValueError):
            raise self._foreign() from None

    def stream(self) -> HttpStream:
        return HttpStream(self)

    def value(self, kind: str, data: bytes) -> Body:
        """The content of an event; raises if it reports a fault."""
        value = self._json(data)
        if (status := self.dialect.fault(kind, value)) is not None:
            raise self.refusal(status, data, {})
        return value

    def chunks(self, reader: ChunkReader, value: Body) -> Iterator[Chunk]:
        try:
            yield from reader.read(value)
        except (KeyError, TypeError, IndexError, ValueError):
            raise self._foreign() from None

    @contextmanager
    def in_our_words(self, deadline: Deadline) -> Iterator[None]:
        """httpx's failures as `GenerationError`."""
        try:
            yield
        except (TimeoutError, httpx.TimeoutException) as error:
            raise GenerationError("DEADLINE_EXCEEDED", f"no answer within {deadline.seconds:g} s",
                                  place=self.server.url) from error
        except (httpx.TransportError, httpx.DecodingError) as error:
            raise GenerationError("UNAVAILABLE", str(error) or type(error).__name__, place=self.server.url) from error

    def refusal(self, status: int, body: bytes, headers: Mapping[str, str]) -> GenerationError:
        code = {**_CODES, **self.dialect.codes}.get(status, "INTERNAL")
        return GenerationError(code, _said(body) or f"HTTP {status}", place=self.server.url,
                               retry_after=_seconds(headers.get("retry-after")))

    def _json(self, data: bytes) -> Body:
        try:
            value = json.loads(data)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise self._foreign()
        return value

    def _foreign(self) -> GenerationError:
        return GenerationError("INTERNAL", f"the answer has an unexpected form: is this {self.dialect.name}?",
                               place=self.server.url)


class HttpStream:
    """One streamed answer, from its bytes to chunks."""

    def __init__(self, calls: HttpCalls) -> None:
        self._calls, self._reader = calls, calls.dialect.reader()
        self._events = EventReader()
        self._finished = False

    def feed(self, piece: bytes) -> Iterator[Chunk]:
        for kind, data in self._events.feed(piece):
            if data == _DONE:
                yield from self._noting(self._reader.end())
            else:
                yield from self._noting(self._calls.chunks(self._reader, self._calls.value(kind, data)))

    def end(self) -> Iterator[Chunk]:
        """Call it after the last byte; raises if the answer was not complete."""
        yield from self._noting(self._reader.end())
        if not self._finished:
            raise httpx.RemoteProtocolError("the stream ended before the answer did")

    def check(self, deadline: Deadline) -> None:
        if not self._finished:
            deadline.check()

    def _noting(self, chunks: Iterator[Chunk]) -> Iterator[Chunk]:
        for chunk in chunks:
            self._finished = chunk.finish_reason != "NOT_FINISHED"
            yield chunk


class HttpTransport:
    """Blocks while it waits. Threads may share it."""

    def __init__(self, server: Server, dialect: HttpDialect) -> None:
        self._calls, self.takes_messages = HttpCalls(server, dialect), dialect.takes_messages
        self._http = httpx.Client(**self._calls.options())

    def generate(self, model_id: str, prompt: Prompt, parameters: Parameters, deadline: Deadline) -> Generation:
        path, body = self._calls.request(model_id, prompt, parameters, stream=False)
        with (self._calls.in_our_words(deadline),
              self._http.stream("POST", path, json=body, timeout=deadline.left()) as answer):
            content = bytearray()
            for piece in answer.iter_bytes():
                content += piece
                deadline.check()  # httpx's own limit is for each piece
        return self._calls.generation(answer, bytes(content))

    def stream(self, model_id: str, prompt: Prompt, parameters: Parameters, deadline: Deadline) -> Generator[Chunk]:
        path, body = self._calls.request(model_id, prompt, parameters, stream=True)
        with (self._calls.in_our_words(deadline),
              self._http.stream("POST", path, json=body, timeout=deadline.left()) as answer):
            if answer.status_code != 200:
                raise self._calls.refusal(answer.status_code, answer.read(), answer.headers)
            stream = self._calls.stream()
            for piece in answer.iter_bytes():
                yield from stream.feed(piece)
                stream.check(deadline)
            yield from stream.end()

    def close(self) -> None:
        self._http.close()


class AsyncHttpTransport:
    """Awaits."""

    def __init__(self, server: Server, dialect: HttpDialect) -> None:
        self._calls, self.takes_messages = HttpCalls(server, dialect), dialect.takes_messages
        self._http = httpx.AsyncClient(**self._calls.options())

    async def generate(self, model_id: str, prompt: Prompt, parameters: Parameters, deadline: Deadline) -> Generation:
        path, body = self._calls.request(model_id, prompt, parameters, stream=False)
        with self._calls.in_our_words(deadline):
            async with self._http.stream("POST", path, json=body, timeout=deadline.left()) as answer:
                content = bytearray()
                async for piece in answer.aiter_bytes():
                    content += piece
                    deadline.check()
        return self._calls.generation(answer, bytes(content))

    async def stream(self, model_id: str, prompt: Prompt, parameters: Parameters,
                     deadline: Deadline) -> AsyncGenerator[Chunk]:
        path, body = self._calls.request(model_id, prompt, parameters, stream=True)
        with self._calls.in_our_words(deadline):
            async with self._http.stream("POST", path, json=body, timeout=deadline.left()) as answer:
                if answer.status_code != 200:
                    raise self._calls.refusal(answer.status_code, await answer.aread(), answer.headers)
                stream = self._calls.stream()
                async for piece in answer.aiter_bytes():
                    for chunk in stream.feed(piece):
                        yield chunk
                    stream.check(deadline)
                for chunk in stream.end():
                    yield chunk

    async def close(self) -> None:
        await self._http.aclose()


class EventReader:
    """Server-sent events. Lines end with LF or CRLF only: U+2028 in a text is not a line's end."""

    def __init__(self) -> None:
        self._kind, self._rest = "message", b""
        self._data: list[bytes] = []

    def feed(self, piece: bytes) -> Iterator[tuple[str, bytes]]:
        """The events (kind, data) that these bytes complete."""
        *lines, self._rest = (self._rest + piece).split(b"\n")
        for line in lines:
            line = line.removesuffix(b"\r")
            name, _, value = line.partition(b":")
            value = value.removeprefix(b" ")
            if not line and self._data:
                yield self._kind, b"\n".join(self._data)
            if not line:
                self._kind, self._data = "message", []
            elif name == b"data":
                self._data.append(value)
            elif name == b"event":
                self._kind = value.decode("utf-8", errors="replace")


def events(pieces: Iterable[bytes]) -> Iterator[tuple[str, bytes]]:
    """The server-sent events of a stream of bytes, however it is cut."""
    reader = EventReader()
    for piece in pieces:
        yield from reader.feed(piece)


def _said(body: bytes) -> str | None:
    """The message of an error, as Caikit, FastAPI, or an OpenAI-compatible server words it."""
    try:
        value = json.loads(body)
    except ValueError:
        return None
    if not isinstance(value, dict):
        return None
    if isinstance(error := value.get("error"), dict):
        value = error
    said = value.get("details") or value.get("detail") or value.get("message") or error
    return said if isinstance(said, str) else json.dumps(said) if said else None


def _seconds(text: str | None) -> float | None:
    """Of a Retry-After header; its other form, a date, is left unread."""
    try:
        return max(0.0, float(text)) if text else None
    except ValueError:
        return None
