"""`POST /guard` takes a model's answer and gives it back judged; `/health` for the probes."""

from __future__ import annotations

import json
import socket
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from llm_detox.errors import DetoxError
from llm_detox.guard.filter import Guard
from serving.guard.answers import judged

_MAX_BODY = 4 * 2**20


class GuardServer:
    """Listens when it is made.

    Raises:
        DetoxError: the port is taken, or may not be used.
    """

    def __init__(self, guard: Guard, host: str, port: int) -> None:
        class Handler(_Handler):
            judge = guard

        class Listener(ThreadingHTTPServer):
            address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
            request_queue_size = 128
            daemon_threads = True

        try:
            self._server = Listener((host, port), Handler)
        except OSError as error:
            raise DetoxError(f"cannot listen: {error.strerror}", place=f"{host}:{port}",
                             remedy="choose another --port") from None
        self.port = int(self._server.server_address[1])

    def serve(self) -> None:
        """Answer until `close` is called from another thread."""
        self._server.serve_forever(poll_interval=0.1)
        self._server.server_close()

    def close(self) -> None:
        self._server.shutdown()


class _Handler(BaseHTTPRequestHandler):
    judge: Guard
    protocol_version = "HTTP/1.1"
    timeout = 120
    disable_nagle_algorithm = True  # head and body go in two writes; the second would wait for an acknowledgement

    def do_GET(self) -> None:
        if self.path.partition("?")[0] == "/health":
            self._send(200, {"guard": self.judge.name})
        else:
            self._send(404, {"details": "not found: there are /guard and /health", "code": 404})

    def do_POST(self) -> None:
        length = self.headers.get("content-length", "")
        if not length.isascii() or not length.isdigit() or int(length) > _MAX_BODY:
            self.close_connection = True  # the body stays unread
            self._send(413, {"details": f"an answer has a length, of at most {_MAX_BODY} bytes", "code": 413})
            return
        body = self.rfile.read(int(length))
        try:
            self._send(200, judged(json.loads(body), self.judge))
        except (ValueError, RecursionError) as error:
            self._send(422, {"details": f"this cannot be judged, and is withheld: {error}", "code": 422})
        except Exception as error:  # whatever the guard does, the answer must not pass
            self._send(500, {"details": f"the guard failed: {type(error).__name__}: {error}", "code": 500})

    def _send(self, status: int, value: object) -> None:
        body = json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """A line for each answer would only repeat the router's log."""
