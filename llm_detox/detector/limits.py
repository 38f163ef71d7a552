"""Bounds around an application: how long a request may be, and how long it may take to come."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

MOST_BYTES, _DISCARDED = 2**20, 2**24
_SECONDS = 30.0


def _ignored(_: int) -> None:
    """For an application that counts no answers."""


class Limits:
    """Reads a request whole before the application sees it; one that is too long or too late is answered here.

    Args:
        app: the application.
        most_bytes: of a request's body.
        words: the key of an error's text, beside `code`.
        answered: called with the status of each answer.
    """

    def __init__(self, app: ASGIApp, most_bytes: int = MOST_BYTES, words: str = "message",
                 answered: Callable[[int], None] = _ignored) -> None:
        self._app, self._most, self._words, self._answered = app, most_bytes, words, answered

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._answered(message["status"])
            await send(message)

        try:
            body = await asyncio.wait_for(self._body(scope, receive), _SECONDS)
        except TimeoutError:
            await self._refuse(counted, 408, f"the request did not come within {_SECONDS:g} seconds")
            return
        if body is None:
            await self._refuse(counted, 413, f"a request has at most {self._most} bytes")
            return
        whole: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return whole.pop() if whole else await receive()

        await self._app(scope, replay, counted)

    async def _body(self, scope: Scope, receive: Receive) -> bytes | None:
        """The whole body; None where it is too long.

        What is a little too long is read to its end: a client that still sends would not see the answer.
        """
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self._most + _DISCARDED:
            return None
        body, size, more = bytearray(), 0, True
        while more and size <= self._most + _DISCARDED:
            message = await receive()
            part, more = message.get("body", b""), message.get("more_body", False)
            size += len(part)
            if size <= self._most:
                body += part
        return bytes(body) if size <= self._most else None

    async def _refuse(self, send: Send, status: int, text: str) -> None:
        body = json.dumps({"code": status, self._words: text}).encode()
        await send({"type": "http.response.start", "status": status, "headers": [
            (b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()),
            (b"connection", b"close")]})
        await send({"type": "http.response.body", "body": body})
