"""The page's server: listens on loopback by default, until Ctrl-C."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, Callable, Collection
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit

import uvicorn
from fastapi import FastAPI
from nicegui import ui
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llm_detox.compare_ui.page import TITLE, Comparison, register
from llm_detox.errors import DetoxError
from llm_detox.progress import say


def serve(comparison: Comparison, *, host: str, port: int, on_ready: Callable[[str], None]) -> None:
    """Show the page until this process is asked to end (SIGINT, SIGTERM). Once in a process: NiceGUI is one app.

    Args:
        port: 0 takes a free port.
        on_ready: called with the page's address.

    Raises:
        DetoxError: the port is taken, or may not be used.
    """
    listener = _listen(host, port)
    address = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
    local = host in LOOPBACK
    if not local:
        say(f"everybody who reaches {address} can ask the models: there is no login")

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        on_ready(address)
        yield
        await asyncio.gather(*(side.close() for side in comparison.sides))

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(OwnOrigin, hosts=LOOPBACK if local else None)
    register(comparison)
    ui.run_with(app, title=TITLE, favicon="◐", dark=None, tailwind=False, language="en-US",
                show_welcome_message=False)
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2)
    with suppress(KeyboardInterrupt):  # uvicorn raises it again when it has ended
        uvicorn.Server(config).run(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET,
                                    backlog=128)
    except OSError as error:
        raise DetoxError(f"cannot listen: {error.strerror or error}", place=f"{host}:{port}",
                         remedy="choose another --port") from None


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
        hosts: names under which the page may be requested; None allows all.
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
