"""`/health` for the probes and `/metrics` for Prometheus, over plain HTTP."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable

from serving.http_server import CLIENT_SECONDS, SmallServer, TimedHandler

_EXPOSITION = "text/plain; version=0.0.4; charset=utf-8"


class HttpServer:
    """Serves from threads of its own until closed.

    Args:
        host, port: where to listen; port 0 takes a free one.
        healthy: why the engine is not ready, or None where it is; called for each request to /health.
        metrics: the text for /metrics.
        client_seconds: how long a client may take to send a request, and to take the answer.

    Raises:
        DetoxError: the port is taken, or may not be used.
    """

    def __init__(self, host: str, port: int, healthy: Callable[[], str | None], metrics: Callable[[], bytes],
                 client_seconds: float = CLIENT_SECONDS) -> None:
        class Handler(_Handler):
            trouble = staticmethod(healthy)
            text = staticmethod(metrics)

        self._server = SmallServer(host, port, Handler, client_seconds)
        self.port = self._server.port
        threading.Thread(target=self._server.serve_forever, name="http", daemon=True).start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()


class _Handler(TimedHandler):
    trouble: Callable[[], str | None]
    text: Callable[[], bytes]

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/health":
            trouble = self.trouble()
            self.send(200, b"") if trouble is None else self.send(503, json.dumps({"error": trouble}).encode())
        elif path == "/metrics":
            self.send(200, self.text(), _EXPOSITION)
        else:
            self.send(404, json.dumps({"error": "not found: there are /health and /metrics"}).encode())

    do_HEAD = do_GET
