"""The detector API as a FastAPI application: `/api/v1/text/contents`, `/health`, `/metrics`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from typing import Annotated, Any, Protocol, TypeVar

from fastapi import FastAPI, Header, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as StarletteHTTPException

from llm_detox import __version__
from llm_detox.detector.base import UNSCORED, Detection, Detector, Offer
from llm_detox.detector.limits import Limits
from llm_detox.detector.messages import ContentDetection, ContentsRequest, DetectorParams, ErrorAnswer, problem
from llm_detox.detector.metrics import EXPOSITION, Metrics
from llm_detox.detector.samples import LiveSamples
from llm_detox.errors import DetoxError
from llm_detox.progress import say

LONGEST_QUEUE = 64  # requests of one detector; more are told to come again
MOST_REWRITES = 32  # of a request; a rewrite takes a hundred times as long as a score
Found = list[list[Detection]]
T = TypeVar("T")


class Offering(Protocol):
    """Writes acceptable versions."""

    def offers(self, texts: Sequence[str]) -> list[Offer]:
        """One offer for each text."""


class Lane:
    """A detector and the one thread that it works in."""

    def __init__(self, detector: Detector) -> None:
        self.detector = detector
        self.requests = 0
        self._thread = ThreadPoolExecutor(1)

    async def run(self, work: Callable[[], T]) -> T:
        """The result of some work, when those before it are done."""
        if self.requests >= LONGEST_QUEUE:
            raise HTTPException(503, "too many requests wait for this detector", {"Retry-After": "1"})
        self.requests += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        finally:
            self.requests -= 1


def detector_app(detectors: Mapping[str, Detector], rewriting: Offering | None = None,
                 samples: LiveSamples | None = None) -> FastAPI:
    """The application.

    Args:
        detectors: id, as in the request's header -> detector.
        rewriting: for requests that ask for acceptable versions; None refuses them.
        samples: keeps some of the contents.
    """
    app = FastAPI(title="llm-detox detectors", version=__version__, docs_url=None, redoc_url=None)
    lanes, metrics = {name: Lane(detector) for name, detector in detectors.items()}, Metrics()
    errors: dict[int | str, dict[str, Any]] = {
        code: {"model": ErrorAnswer} for code in (400, 404, 408, 413, 422, 500, 503)}

    @app.post("/api/v1/text/contents", responses={200: {"model": list[list[ContentDetection]]}, **errors})
    async def contents(request: ContentsRequest, detector_id: Annotated[str, Header()]) -> JSONResponse:
        """Detections of each content."""
        lane, started = lanes.get(detector_id), time.perf_counter()
        if lane is None:
            raise HTTPException(404, f"there is no such detector; there are: {', '.join(lanes)}")
        thresholds = _thresholds(lane.detector, request.detector_params)
        if request.detector_params.rewrite and rewriting is None:
            raise HTTPException(422, "detector_params.rewrite: this server was started without --rewrite")
        offering = rewriting if request.detector_params.rewrite else None
        found, answer = await lane.run(partial(_answer, lane.detector, request.contents, thresholds, offering))
        metrics.detected(detector_id, found, time.perf_counter() - started)
        if samples:
            await asyncio.to_thread(_keep, samples, detector_id, request.contents, found)
        return JSONResponse(answer)

    @app.get("/health")
    async def health() -> dict[str, str]:
        """It listens when its models are loaded."""
        return {"health_status": "READY"}

    @app.get("/metrics", include_in_schema=False)
    async def prometheus() -> Response:
        for name, lane in lanes.items():
            metrics.waiting.labels(name).set(lane.requests)
        return Response(metrics.exposition(), media_type=EXPOSITION)

    _answer_errors(app)
    app.add_middleware(Limits, answered=lambda status: metrics.requests.labels(str(status)).inc())
    return app


def _keep(samples: LiveSamples, detector: str, contents: Sequence[str], found: Found) -> None:
    """Each content with the highest score of each detection in it."""
    for text, detections in zip(contents, found, strict=True):
        highest = {one.detection: one.score for one in sorted(detections, key=lambda one: one.score)}
        samples.keep(text, {**highest, "detector": detector})


def _thresholds(detector: Detector, params: DetectorParams) -> dict[str, float]:
    """What is looked for: the detector's own, with the request's threshold, and what the request names."""
    thresholds = {name: params.threshold or default for name, default in detector.default.items()}
    for name in params.thresholds:
        if name not in detector.detections:
            raise HTTPException(422, "detector_params.thresholds: this detector finds only: "
                                     f"{', '.join(detector.detections)}")
    return thresholds | params.thresholds


def _answer(detector: Detector, contents: Sequence[str], thresholds: Mapping[str, float],
            rewriting: Offering | None) -> tuple[Found, list[list[dict[str, Any]]]]:
    found = detector.detect(contents, thresholds)
    answer = [[asdict(one) for one in detections] for detections in found]
    if rewriting is not None:
        offers = _offers([one for detections in found for one in detections], detector, thresholds, rewriting)
        for one in (one for detections in answer for one in detections):
            one["metadata"] = asdict(offers[one["text"]])
    return found, answer


def _offers(found: Sequence[Detection], detector: Detector, thresholds: Mapping[str, float],
            rewriting: Offering) -> dict[str, Offer]:
    """Text -> its acceptable version, in which the detector finds nothing."""
    texts = list(dict.fromkeys(one.text for one in found))
    unscored = {one.text for one in found if one.detection == UNSCORED}
    tried = [text for text in texts if text not in unscored][:MOST_REWRITES]
    offers = {text: Offer(None, None, "could not be scored" if text in unscored else
                          f"only the first {MOST_REWRITES} of a request are rewritten") for text in texts}
    offers |= zip(tried, rewriting.offers(tried) if tried else (), strict=True)
    written = [(text, offer.rewrite) for text, offer in offers.items() if offer.rewrite is not None]
    again = detector.detect([rewrite for _, rewrite in written], thresholds) if written else []
    for (text, _), left in zip(written, again, strict=True):
        if left:
            offers[text] = Offer(None, None, "the detector finds something in the rewrite, too")
    return offers


def _answer_errors(app: FastAPI) -> None:
    """Every failure in the API's form."""
    def error(status: int, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
        return JSONResponse({"code": status, "message": message}, status, headers)

    @app.exception_handler(StarletteHTTPException)
    async def refused(_: Request, cause: StarletteHTTPException) -> JSONResponse:
        return error(cause.status_code, str(cause.detail), cause.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, cause: RequestValidationError) -> JSONResponse:
        return error(422, problem(cause.errors()[0]))

    @app.exception_handler(Exception)
    async def failed(_: Request, cause: Exception) -> JSONResponse:
        message = cause.message if isinstance(cause, DetoxError) else type(cause).__name__
        say(f"a request failed: {message}")
        return error(500, f"the detector failed: {message}")
