"""What reaches Caikit's REST port: requests to the paths on a list, of a bounded size, sent and read in time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

OFFERED = frozenset({
    ("POST", "/api/v1/task/text-generation"), ("POST", "/api/v1/task/server-streaming-text-generation"),
    ("POST", "/api/v1/task/tokenization"), ("GET", "/health"), ("GET", "/info/version"), ("GET", "/info/models"),
    ("GET", "/openapi.json"), ("GET", "/docs"), ("GET", "/redoc"),
})
_MAX_HEAD_BYTES = 64 * 2**10
_TOO_SLOW = b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class RestEdge:
    """ASGI middleware: 404 for paths that are not offered, 413 for bodies past the limit, 408 for slow ones.

    Args:
        app: Caikit's.
        max_bytes: of a body, whether or not its length is announced.
        client_seconds: how long a client may take to send a body.
    """

    def __init__(self, app: Any, max_bytes: int, client_seconds: float) -> None:
        self._app, self._max, self._seconds = app, max_bytes, client_seconds

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)

    async def _http(self, scope: Message, receive: Receive, send: Send) -> None:
        scope["headers"] = json_by_its_plain_name(scope["headers"])
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if (scope["method"], scope["path"]) not in OFFERED:
            await refuse(send, 404, "this server does not offer that")
        elif length.isdigit() and int(length) > self._max:
            await refuse(send, 413, f"the request is larger than {self._max} bytes")
        else:
            body = _Body(receive, send, self._max, self._seconds)
            try:
                await self._app(scope, body.receive, body.send)
            except Exception:
                if not body.refused:  # else it only learned that its request is over
                    raise


class _Body:
    """One request's body on its way to the application, and the answer on its way back."""

    def __init__(self, receive: Receive, send: Send, max_bytes: int, seconds: float) -> None:
        self._receive, self._send, self._max = receive, send, max_bytes
        self._deadline = asyncio.get_running_loop().time() + seconds
        self._seen, self._whole = 0, False
        self.refused = False

    async def receive(self) -> Message:
        if self._whole:  # what comes now is news of the client's leaving
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            return await self._end(408, "the request did not come in time")
        self._seen += len(message.get("body", b""))
        self._whole = not message.get("more_body", False)
        if self._seen > self._max:
            return await self._end(413, f"the request is larger than {self._max} bytes")
        return message

    async def send(self, message: Message) -> None:
        if not self.refused:
            await self._send(message)

    async def _end(self, status: int, reason: str) -> Message:
        if not self.refused:
            self.refused = True
            await refuse(self._send, status, reason)
        return {"type": "http.disconnect"}


async def refuse(send: Send, status: int, reason: str) -> None:
    """Answer as Caikit does, and end the connection."""
    body = json.dumps({"details": reason, "code": status}).encode()
    await send({"type": "http.response.start", "status": status, "headers": [
        (b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()),
        (b"connection", b"close")]})
    await send({"type": "http.response.body", "body": body})


def json_by_its_plain_name(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Caikit knows `application/json` in these letters only, and fails where no type is given."""
    kind = next((value for name, value in headers if name == b"content-type"), b"")
    if kind.partition(b";")[0].strip().lower() not in (b"application/json", b""):
        return headers
    return [*(one for one in headers if one[0] != b"content-type"), (b"content-type", b"application/json")]


class PatientProtocol(HttpToolsProtocol):  # type: ignore[misc]
    """uvicorn's connection, which ends when its client keeps it waiting: for a head, a body, or to take an answer."""

    client_seconds = 30.0

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._head_bytes: int | None = 0  # None while no head is expected
        self._reading: asyncio.TimerHandle | None = None
        self._writing: asyncio.TimerHandle | None = None
        self._expect(self._no_head)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        for timer in (self._reading, self._writing):
            if timer is not None:
                timer.cancel()

    def data_received(self, data: bytes) -> None:
        if self._head_bytes is not None:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._head_bytes is not None and self._head_bytes > _MAX_HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response("The head of the request is too large.")
        if self._reading is None and self.timeout_keep_alive_task is None and self._between_requests():
            self._expect(self._no_head)  # it sent empty lines, which begin no request

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_bytes = 0
        self._expect(self._no_head)

    def on_headers_complete(self) -> None:
        self._head_bytes = None
        self._expect(self._no_body)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._expect(None)
        super().on_message_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._writing is None:
            self._writing = self.loop.call_later(self.client_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._expect(self.transport.abort)  # what is written waits in vain for a client that reads nothing

    def _expect(self, otherwise: Callable[[], object] | None) -> None:
        if self._reading is not None:
            self._reading.cancel()
        self._reading = self.loop.call_later(self.client_seconds, otherwise) if otherwise else None

    def _between_requests(self) -> bool:
        return self.cycle is None or bool(self.cycle.response_complete)

    def _no_head(self) -> None:
        if not self.transport.is_closing():
            if self._between_requests():
                self.transport.write(_TOO_SLOW)
            self.transport.close()
        self._expect(self.transport.abort)

    def _no_body(self) -> None:
        """The application has answered long ago, or `RestEdge` does now; this ends what goes on sending."""
        self._expect(self.transport.abort)
