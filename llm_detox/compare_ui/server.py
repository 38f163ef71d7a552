"""The page's server: listens on loopback unless told otherwise, until Ctrl-C."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress

import uvicorn
from fastapi import FastAPI
from nicegui import ui

from llm_detox.compare_ui.origin import LOOPBACK, OwnOrigin
from llm_detox.compare_ui.page import TITLE, Comparison, register
from llm_detox.errors import DetoxError
from llm_detox.progress import say


def serve(comparison: Comparison, *, host: str, port: int, on_ready: Callable[[str], None]) -> None:
    """Show the page until this process is told to end (SIGINT, SIGTERM). Once in a process: NiceGUI is one app.

    Args:
        port: 0 takes a free one.
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
