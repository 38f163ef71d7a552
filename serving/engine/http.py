"""`/health` for the probes and `/metrics` for Prometheus, over plain HTTP."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from llm_detox.errors import DetoxError

_EXPOSITION = "text/plain; version=0.0.4; charset=utf-8"


class HttpServer:
    """Serves from threads of its own until closed.

    Args:
        host, port: where to listen; port 0 takes a free one.
        healthy: why the engine is not ready, or None where it is; called for each request to /health.
        metrics: the text for /metrics.

    Raises:
        DetoxError: the port is taken, or may not be used.
    """

    def __init__(self, host: str, port: int, healthy: Callable[[], str | None], metrics: Callable[[], bytes]) -> None:
        class Handler(_Handler):
            trouble = staticmethod(healthy)
            text = staticmethod(metrics)

        class Listener(ThreadingHTTPServer):
            address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

        try:
            self._server = Listener((host, port), Handler)
        except OSError as error:
            raise DetoxError(f"cannot listen: {error.strerror}", place=f"{host}:{port}",
                             remedy="choose another --port") from None
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])
        threading.Thread(target=self._server.serve_forever, name="http", daemon=True).start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    trouble: Callable[[], str | None]
    text: Callable[[], bytes]
    protocol_version = "HTTP/1.1"
    timeout = 60

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/health":
            trouble = self.trouble()
            self._send(200, b"") if trouble is None else self._send(503, json.dumps({"error": trouble}).encode())
        elif path == "/metrics":
            self._send(200, self.text(), _EXPOSITION)
        else:
            self._send(404, json.dumps({"error": "not found: there are /health and /metrics"}).encode())

    do_HEAD = do_GET

    def _send(self, status: int, body: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Probes come every few seconds; they are not worth a line each."""
