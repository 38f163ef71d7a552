"""Who may speak with the page: a browser that opened it under its own address, and no page of somebody else."""

from __future__ import annotations

from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
# NiceGUI starts from inline scripts and compiles templates in the browser; everything comes from this server.
_POLICY = ("default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
           "img-src 'self' data:; font-src 'self' data:; object-src 'none'; base-uri 'none'; form-action 'none'; "
           "frame-ancestors 'none'")
_HEADERS = ((b"content-security-policy", _POLICY.encode()), (b"x-content-type-options", b"nosniff"),
            (b"referrer-policy", b"no-referrer"))


class OwnOrigin:
    """Refuses requests under a foreign name (DNS rebinding) and from foreign pages; adds the headers that keep the
    page's requests at home.

    Args:
        hosts: names under which the page may be asked for; None allows all.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str] | None) -> None:
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
        elif not self._allowed({name: value.decode("latin-1") for name, value in scope["headers"]}):
            await self._refuse(scope, receive, send)
        else:
            async def with_headers(message: Message) -> None:
                if message["type"] == "http.response.start":
                    message = {**message, "headers": [*message["headers"], *_HEADERS]}
                await send(message)

            await self.app(scope, receive, with_headers)

    def _allowed(self, headers: dict[bytes, str]) -> bool:
        host, origin = headers.get(b"host", ""), headers.get(b"origin")
        try:
            if self.hosts is not None and urlsplit(f"//{host}").hostname not in self.hosts:
                return False
            return origin is None or urlsplit(origin).netloc == host
        except ValueError:  # not a host at all
            return False

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await PlainTextResponse("this page answers only under its own address", 403)(scope, receive, send)
