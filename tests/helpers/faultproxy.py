"""An HTTP proxy in front of a real S3 store that fails as networks and stores do."""

from __future__ import annotations

import http.client
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Request:
    """What a fault decides by: the method, path and query, and which request of the proxy's life this is."""

    method: str
    path: str
    number: int


@dataclass(frozen=True)
class Status:
    """An error answer in S3's form, instead of the store's."""

    code: int
    name: str


@dataclass(frozen=True)
class Redirect:
    """An answer that sends the client elsewhere, without a word of S3."""

    location: str
    code: int = 301


@dataclass(frozen=True)
class Reset:
    """The connection breaks: in the middle of the request's body, or of the answer's (`late`)."""

    late: bool = False


@dataclass(frozen=True)
class Stall:
    """Nothing happens for so long, and then the connection ends."""

    seconds: float


@dataclass(frozen=True)
class Lost:
    """The store does what it is asked, but its answer never arrives."""


@dataclass(frozen=True)
class Slow:
    """The store's own answer, so much later."""

    seconds: float


@dataclass(frozen=True)
class Short:
    """Half of the store's answer, as if it were the whole of it."""


Fault = Status | Redirect | Reset | Stall | Lost | Slow | Short | None
Decide = Callable[[Request], Fault]


class Proxy:
    """`decide` may be replaced while it runs; `seen` lists all requests."""

    def __init__(self, target: str) -> None:
        self.target = urlsplit(target)
        self.decide: Decide = lambda request: None
        self.seen: list[Request] = []
        self.lock = threading.Lock()
        self.url = ""

    def count(self, method: str, part: str = "") -> int:
        return sum(one.method == method and part in one.path for one in self.seen)


class _Handler(BaseHTTPRequestHandler):
    proxy: Proxy
    protocol_version = "HTTP/1.1"

    def handle_one_request(self) -> None:
        with suppress(ConnectionError, TimeoutError):
            super().handle_one_request()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("do_"):
            return self._handle
        raise AttributeError(name)

    def _handle(self) -> None:
        with self.proxy.lock:
            request = Request(self.command, self.path, len(self.proxy.seen))
            self.proxy.seen.append(request)
        fault = self.proxy.decide(request)
        length = int(self.headers.get("content-length") or 0)
        if isinstance(fault, Reset) and not fault.late:
            self.rfile.read(length // 2)
            self._break()
            return
        body = self.rfile.read(length)
        if isinstance(fault, Stall):
            time.sleep(fault.seconds)
            self._break()
        elif isinstance(fault, Status):
            self._refuse(fault)
        elif isinstance(fault, Redirect):
            self.send_response_only(fault.code)
            self.send_header("location", fault.location)
            self.send_header("content-length", "0")
            self.end_headers()
        else:
            if isinstance(fault, Slow):
                time.sleep(fault.seconds)
            self._forward(body, fault)

    def _forward(self, body: bytes, fault: Fault) -> None:
        # The signature covers the Host header, so it goes on unchanged.
        connection = http.client.HTTPConnection(str(self.proxy.target.hostname), self.proxy.target.port, timeout=60)
        headers = {name: value for name, value in self.headers.items() if name.lower() != "expect"}
        connection.request(self.command, self.path, body=body or None, headers=headers)
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        if isinstance(fault, Lost):
            self._break()
            return
        if isinstance(fault, Short):
            data = data[:len(data) // 2]
        self.send_response_only(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                self.send_header(name, value)
        told = answer.getheader("content-length") if self.command == "HEAD" else str(len(data))
        self.send_header("content-length", told or "0")
        self.end_headers()
        if isinstance(fault, Reset):
            self.wfile.write(data[:len(data) // 2])
            self.wfile.flush()
            self._break()
        else:
            self.wfile.write(data)

    def _refuse(self, fault: Status) -> None:
        text = f"<?xml version='1.0'?><Error><Code>{fault.name}</Code><Message>injected</Message></Error>".encode()
        self.send_response_only(fault.code)
        self.send_header("content-type", "application/xml")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)

    def _break(self) -> None:
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
        self.connection.close()

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def fault_proxy(target: str) -> Iterator[Proxy]:
    """Run a proxy to the store at `target` (http://host:port)."""
    proxy = Proxy(target)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"proxy": proxy}))
    server.daemon_threads = True
    proxy.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
