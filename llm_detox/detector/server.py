"""An application on uvicorn: TLS, and clients that are slow or too many lose their connection."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from llm_detox.errors import DetoxError, UsageError

CLIENT_SECONDS = 30.0
_MOST_CONNECTIONS, _LONGEST_HEAD = 256, 2**19  # bytes; more than comes in one piece


@dataclass(frozen=True)
class Tls:
    """PEM files: the server's certificate and key, and the authority of clients that have to show one."""

    cert: Path
    key: Path
    client_ca: Path | None = None


class AppServer:
    """Listens when it is made.

    Args:
        host, port: where to listen; port 0 takes a free one.
        client_seconds: how long a request may take to come, and a connection may be silent.

    Raises:
        DetoxError: the port is taken or may not be used, or a TLS file cannot be read.
    """

    def __init__(self, app: FastAPI, host: str, port: int, tls: Tls | None = None,
                 client_seconds: float = CLIENT_SECONDS) -> None:
        config = uvicorn.Config(
            app, http=timed_protocol(client_seconds), ws="none", lifespan="off", log_level="warning", access_log=False,
            server_header=False, timeout_keep_alive=int(client_seconds), timeout_graceful_shutdown=10, **_options(tls))
        try:
            config.load()
        except (OSError, ssl.SSLError) as error:
            raise DetoxError(f"the TLS files cannot be used: {type(error).__name__}", place=str(tls and tls.cert),
                             remedy="check --tls-cert-path, --tls-key-path and --tls-client-ca-cert-path") from None
        self._socket = _listening(host, port)
        self.port = int(self._socket.getsockname()[1])
        self._server = _Server(config)

    def serve(self) -> None:
        """Answer until `close` is called, from a signal handler or another thread."""
        self._server.run(sockets=[self._socket])

    def close(self) -> None:
        self._server.should_exit = True


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the caller's."""
        yield


def tls_of(cert: Path | None, key: Path | None, client_ca: Path | None) -> Tls | None:
    """What three options say.

    Raises:
        UsageError: they do not go together.
    """
    if cert and key:
        return Tls(cert, key, client_ca)
    if cert or key or client_ca:
        raise UsageError("TLS needs a certificate and its key", place="--tls-cert-path, --tls-key-path",
                         remedy="give both, or neither and no --tls-client-ca-cert-path")
    return None


def _options(tls: Tls | None) -> dict[str, Any]:
    if tls is None:
        return {}
    more = {"ssl_ca_certs": str(tls.client_ca), "ssl_cert_reqs": ssl.CERT_REQUIRED} if tls.client_ca else {}
    return {"ssl_certfile": str(tls.cert), "ssl_keyfile": str(tls.key), **more}


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise DetoxError(f"cannot listen: {error.strerror or error}", place=f"{host}:{port}",
                         remedy="choose another --port") from None
    return listener


def timed_protocol(seconds: float) -> type[HttpToolsProtocol]:
    """uvicorn's protocol, for which a request has to be there in time; of too many connections the oldest goes."""
    connections: dict[asyncio.Protocol, None] = {}  # in the order in which they came

    class Timed(HttpToolsProtocol):
        _timer: asyncio.TimerHandle | None = None
        _head: int | None = 0  # bytes of a request's head so far; None after it

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(connections) >= _MOST_CONNECTIONS:
                oldest = next(iter(connections))
                connections.pop(oldest)
                oldest.transport.abort()  # type: ignore[attr-defined]
            connections[self] = None
            self._expect()

        def data_received(self, data: bytes) -> None:
            if self._head is not None:
                self._head += len(data)
                if self._head > _LONGEST_HEAD:
                    self.transport.abort()
                    return
            super().data_received(data)

        def on_headers_complete(self) -> None:
            self._head = None
            super().on_headers_complete()

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._expect()

        def on_message_complete(self) -> None:
            self._stop()
            self._head = 0
            super().on_message_complete()

        def connection_lost(self, exc: Exception | None) -> None:
            connections.pop(self, None)
            self._stop()
            super().connection_lost(exc)

        def _expect(self) -> None:
            if self._timer is None:
                self._timer = self.loop.call_later(seconds, self.transport.abort)

        def _stop(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    return Timed
