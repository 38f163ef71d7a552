"""The Perspective API as an optional scorer: rate limit, retries, and a cache that outlives the run.

The service ends after 2026; local scorers are the default. The key is read from PERSPECTIVE_API_KEY and is sent
in a header, so that it stands in no log of addresses.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

from llm_detox.errors import DetoxError, clear_disk_errors
from llm_detox.progress import say
from llm_detox.runs.cache import cache_dir
from llm_detox.scoring.base import ATTRIBUTES, Scores, ToxicityScorer

ADDRESS = "https://commentanalyzer.googleapis.com/v1alpha1/comments:analyze"
KEY_VARIABLE = "PERSPECTIVE_API_KEY"
_ATTEMPTS = 4
_REPEATED = {429, 500, 502, 503, 504}


class PerspectiveScorer(ToxicityScorer):
    """One request a text, answered from the cache where it was asked before.

    Args:
        address: of the service; None takes Google's.
        requests_per_second: what the key is allowed.
        timeout: seconds for one request.

    Raises:
        DetoxError: there is no key.
    """

    def __init__(self, address: str | None = None, *, attribute: str = "toxicity", requests_per_second: float = 1.0,
                 timeout: float = 20.0) -> None:
        key = os.environ.get(KEY_VARIABLE)
        if not key:
            raise DetoxError(f"the Perspective API needs a key in {KEY_VARIABLE}", place="scoring",
                             remedy="set it, or use a local scorer: ngram, bilstm, transformers")
        self._key = key
        self.address = address or ADDRESS
        digest = hashlib.sha256(self.address.encode()).hexdigest()[:8]
        super().__init__("perspective", f"perspective-v1alpha1-{digest}", ATTRIBUTES, attribute, batch_size=1,
                         version="v1alpha1", device="service")
        self.interval, self.timeout = 1 / requests_per_second, timeout
        self._next = 0.0
        cache = cache_dir("scorers") / f"perspective-{digest}.sqlite"
        with clear_disk_errors(cache, "set LLM_DETOX_CACHE to another folder"):
            self._cache = sqlite3.connect(cache, timeout=60)
            self._cache.execute("CREATE TABLE IF NOT EXISTS scores (text TEXT PRIMARY KEY, scores TEXT NOT NULL)")
        self._keeps = True

    def score_batch(self, texts: Sequence[str]) -> list[Scores | None]:
        """Texts that the service refuses (such as another language) get None; a service that is gone raises."""
        answers: list[Scores | None] = []
        for text in texts:
            answers.append(self._stored(text) or self._ask(text))
        return answers

    def _stored(self, text: str) -> Scores | None:
        row = self._cache.execute("SELECT scores FROM scores WHERE text = ?", (_name(text),)).fetchone()
        return json.loads(row[0]) if row else None

    def _ask(self, text: str) -> Scores | None:
        scores = _scores(self._answer(text))
        if scores and self._keeps:
            try:
                with self._cache:
                    self._cache.execute("INSERT OR REPLACE INTO scores VALUES (?, ?)",
                                        (_name(text), json.dumps(scores)))
            except sqlite3.Error as error:  # a score is not lost because it cannot be kept
                self._keeps = False
                say(f"scores of the Perspective API are no longer kept: {error}")
        return scores

    def _answer(self, text: str) -> Any:
        """The service's answer; None where it refuses the text."""
        body = json.dumps({"comment": {"text": text}, "languages": ["en"], "doNotStore": True,
                           "requestedAttributes": {name.upper(): {} for name in ATTRIBUTES}}).encode()
        headers = {"Content-Type": "application/json", "X-Goog-Api-Key": self._key}
        for attempt in range(_ATTEMPTS):
            self._wait()
            request = urllib.request.Request(self.address, body, headers)  # noqa: S310 - the recipe names it
            try:
                with urllib.request.urlopen(request, timeout=self.timeout) as answer:  # noqa: S310
                    return json.load(answer)
            except urllib.error.HTTPError as error:
                if error.code not in _REPEATED:
                    if error.code in (401, 403):
                        raise
                    return None
                last: OSError | ValueError = error
            except (OSError, ValueError) as error:  # refused, reset, timed out, or no JSON
                last = error
            self._next = time.monotonic() + self.interval * 2**attempt
        raise last

    def _wait(self) -> None:
        time.sleep(max(0.0, self._next - time.monotonic()))
        self._next = time.monotonic() + self.interval


def _name(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


def _scores(answer: Any) -> Scores | None:
    try:
        return {name: float(answer["attributeScores"][name.upper()]["summaryScore"]["value"]) for name in ATTRIBUTES}
    except (KeyError, TypeError, ValueError):
        return None
