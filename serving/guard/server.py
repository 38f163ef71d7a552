"""`POST /guard` takes a model's answer and gives it back judged; `/health` for the probes."""

from __future__ import annotations

import json

from llm_detox.guard.filter import Guard
from serving.guard.answers import judged
from serving.http_server import CLIENT_SECONDS, SmallServer, TimedHandler

_MAX_BODY = 4 * 2**20


class GuardServer:
    """Listens when it is made.

    Args:
        guard: judges.
        host, port: where to listen; port 0 takes a free one.
        client_seconds: how long a client may take to send an answer, and to take it back.

    Raises:
        DetoxError: the port is taken, or may not be used.
    """

    def __init__(self, guard: Guard, host: str, port: int, client_seconds: float = CLIENT_SECONDS) -> None:
        class Handler(_Handler):
            judge = guard

        self._server = SmallServer(host, port, Handler, client_seconds)
        self.port = self._server.port

    def serve(self) -> None:
        """Answer until `close` is called from another thread."""
        self._server.serve_forever(poll_interval=0.1)
        self._server.server_close()

    def close(self) -> None:
        self._server.shutdown()


class _Handler(TimedHandler):
    judge: Guard

    def do_GET(self) -> None:
        if self.path.partition("?")[0] == "/health":
            self._json(200, {"guard": self.judge.name})
        else:
            self._json(404, {"details": "not found: there are /guard and /health", "code": 404})

    def do_POST(self) -> None:
        length = self.headers.get("content-length", "")
        if not length.isascii() or not length.isdigit() or int(length) > _MAX_BODY:
            self.close_connection = True  # the body stays unread
            self._json(413, {"details": f"an answer has a length, of at most {_MAX_BODY} bytes", "code": 413})
            return
        body = self.rfile.read(int(length))
        try:
            self._json(200, judged(json.loads(body), self.judge))
        except (ValueError, RecursionError) as error:
            self._json(422, {"details": f"this cannot be judged, and is withheld: {error}", "code": 422})
        except Exception as error:  # whatever the guard does, the answer must not pass
            self._json(500, {"details": f"the guard failed: {type(error).__name__}: {error}", "code": 500})

    def _json(self, status: int, value: object) -> None:
        self.send(status, json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass"))
