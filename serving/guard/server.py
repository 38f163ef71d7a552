"""`POST /guard` takes a model's answer and gives it back judged; `/health` and `/metrics` for the platform."""

from __future__ import annotations

import asyncio
import json

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from llm_detox.detector.limits import Limits
from llm_detox.detector.metrics import EXPOSITION
from llm_detox.detector.samples import LiveSamples
from llm_detox.detector.server import CLIENT_SECONDS, AppServer
from llm_detox.guard.filter import Guard
from serving.guard.answers import judged
from serving.guard.watching import WatchedGuard

_MAX_BODY = 4 * 2**20


class GuardServer(AppServer):
    """Listens when it is made.

    Args:
        guard: judges.
        host, port: where to listen; port 0 takes a free one.
        client_seconds: how long a client may take to send an answer.
        samples: keeps some of the answers.

    Raises:
        DetoxError: the port is taken, or may not be used.
    """

    def __init__(self, guard: Guard, host: str, port: int, client_seconds: float = CLIENT_SECONDS,
                 samples: LiveSamples | None = None) -> None:
        super().__init__(guard_app(WatchedGuard(guard, samples)), host, port, client_seconds=client_seconds)


def guard_app(guard: WatchedGuard) -> FastAPI:
    """The application; errors are in Caikit's form."""
    app = FastAPI(title="llm-detox guard", docs_url=None, redoc_url=None, openapi_url=None)

    @app.post("/guard")
    async def judge(request: Request) -> Response:
        body = await request.body()
        try:
            return _json(200, await asyncio.to_thread(lambda: judged(json.loads(body), guard)))
        except (ValueError, RecursionError) as error:
            return _json(422, {"details": f"this cannot be judged, and is withheld: {error}", "code": 422})
        except Exception as error:  # whatever the guard does, the answer must not pass
            return _json(500, {"details": f"the guard failed: {type(error).__name__}: {error}", "code": 500})

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"guard": guard.name}

    @app.get("/metrics")
    async def prometheus() -> Response:
        return Response(guard.exposition(), media_type=EXPOSITION)

    @app.exception_handler(HTTPException)
    async def unknown(_: Request, cause: HTTPException) -> Response:
        there = ": there are /guard, /health and /metrics" if cause.status_code == 404 else ""
        return _json(cause.status_code, {"details": f"{cause.detail}{there}".lower(), "code": cause.status_code})

    app.add_middleware(Limits, most_bytes=_MAX_BODY, words="details",
                       answered=lambda status: guard.requests.labels(str(status)).inc())
    return app


def _json(status: int, value: object) -> Response:
    body = json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")
    return Response(body, status, media_type="application/json")
