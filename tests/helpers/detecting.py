"""A detector of bad words, and detectors served on a port of this machine."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from llm_detox.detector.base import Detector
from llm_detox.detector.samples import LiveSamples
from llm_detox.detector.scorer_detector import ScorerDetector
from llm_detox.detector.server import AppServer, Tls
from llm_detox.detector.service import detector_app
from llm_detox.scoring.base import Scores, ToxicityScorer

CONTENTS = "/api/v1/text/contents"


class BadWords(ToxicityScorer):
    """Scores the share of bad words; a text with `?` cannot be scored."""

    def __init__(self) -> None:
        super().__init__("words", "w", ("toxicity", "insult"))
        self.seen: list[str] = []

    def score_batch(self, texts: Sequence[str]) -> list[Scores | None]:
        self.seen += texts
        return [None if "?" in text else {"toxicity": share(text, "damn"), "insult": share(text, "fool")}
                for text in texts]


def share(text: str, word: str) -> float:
    return min(1.0, 3 * text.lower().count(word) / max(len(text.split()), 1))


@contextmanager
def serving(detectors: Mapping[str, Detector] | None = None, rewriting: Any = None, tls: Tls | None = None,
            client_seconds: float = 30.0, samples: LiveSamples | None = None) -> Iterator[str]:
    """Yields the address."""
    app = detector_app(detectors or {"toxicity": ScorerDetector(BadWords())}, rewriting, samples)
    server = AppServer(app, "127.0.0.1", 0, tls, client_seconds)
    thread = threading.Thread(target=server.serve)
    thread.start()
    try:
        yield f"http{'s' if tls else ''}://127.0.0.1:{server.port}"
    finally:
        server.close()
        thread.join(30)


def asked(url: str, body: Any, detector: str | None = "toxicity", path: str = CONTENTS) -> tuple[int, Any]:
    """Status and answer; `body` is sent as JSON, bytes as they are."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"content-type": "application/json", **({"detector-id": detector} if detector else {})}
    try:
        with urllib.request.urlopen(urllib.request.Request(url + path, data, headers), timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)
