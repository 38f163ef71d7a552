"""A small HTTP server with a thread for each connection, for probes and short answers; slow clients lose theirs."""

from __future__ import annotations

import io
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from llm_detox.errors import DetoxError

_MAX_CONNECTIONS = 128
CLIENT_SECONDS = 30.0


class SmallServer(ThreadingHTTPServer):
    """Listens when it is made. The oldest connection is given up for a new one where there are too many.

    Args:
        host, port: where to listen; port 0 takes a free one.
        handler: for the requests.
        client_seconds: how long a client may take to send a request (or none), and to take the answer.

    Raises:
        DetoxError: the port is taken, or may not be used.
    """

    request_queue_size = 128
    daemon_threads = True

    def __init__(self, host: str, port: int, handler: type[TimedHandler], client_seconds: float) -> None:
        self.client_seconds = client_seconds
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._connections: dict[socket.socket, None] = {}  # in the order in which they came
        self._lock = threading.Lock()
        try:
            super().__init__((host, port), handler)
        except OSError as error:
            raise DetoxError(f"cannot listen: {error.strerror}", place=f"{host}:{port}",
                             remedy="choose another --port") from None
        self.port = int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            oldest = next(iter(self._connections)) if len(self._connections) >= _MAX_CONNECTIONS else None
            self._connections.pop(oldest, None) if oldest else None
            self._connections[request] = None
        if oldest is not None:
            _shut(oldest)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._connections.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone is no error of ours; it would be a traceback each time."""


def _shut(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:  # it has gone meanwhile
        return


class TimedHandler(BaseHTTPRequestHandler):
    """Reads each request before a deadline, however it trickles, and writes each answer before another one."""

    server: SmallServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body go in two writes; the second would wait for an acknowledgement

    def setup(self) -> None:
        super().setup()
        self._clock = _DeadlineReader(self.connection)
        self.rfile = io.BufferedReader(self._clock)

    def handle_one_request(self) -> None:
        self._clock.deadline = time.monotonic() + self.server.client_seconds
        super().handle_one_request()

    def send(self, status: int, body: bytes, kind: str = "application/json") -> None:
        """Answer with this body."""
        self.connection.settimeout(self.server.client_seconds)  # of each write as a whole
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Probes come every few seconds; they are not worth a line each."""


class _DeadlineReader(io.RawIOBase):
    """What comes from a socket until the deadline, on the clock of time.monotonic()."""

    def __init__(self, connection: socket.socket) -> None:
        super().__init__()
        self._connection, self.deadline = connection, 0.0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the request did not come in time")
        self._connection.settimeout(left)
        return self._connection.recv_into(buffer)
