"""How long a store is waited for: what may pass is tried again, but not for ever, and not in silence.

A network's hiccup is over after a second or two, a store that is restarted after some more. Where nothing has come for
`PATIENCE_SECONDS`, nobody who waits is helped: what has arrived is kept, and the next call continues there.
"""

from __future__ import annotations

import random
import threading
import time
from typing import Any

from llm_detox.progress import say

CONNECT_SECONDS, READ_SECONDS = 10.0, 20.0
ATTEMPTS = 30  # more than the pauses leave time for: it is the seconds that end them
PATIENCE_SECONDS = 30.0
"""Without a sign of life for so long no request is made again. One that is under way ends after `READ_SECONDS` without
a byte, so a dead store is given up after 50 s at most."""
_WORD_SECONDS = 5.0
_LONGEST_PAUSE = 5.0
_BEGAN = "llm_detox_silent_since"


def error_code(error: BaseException) -> str:
    """The store's error code; the empty string where the error came from elsewhere."""
    response = getattr(error, "response", None)
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""


def may_pass(error: BaseException) -> bool:
    """Whether the same transfer can succeed a moment later: not after a refusal, nor for reasons on this machine."""
    from botocore.exceptions import ClientError, ConnectionError

    if isinstance(error, ClientError):
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") or 0)
        # NoSuchUpload: the answer to the last request of an upload was lost, and the repetition came too late.
        return _is_passing(status, error_code(error)) or error_code(error) == "NoSuchUpload"
    return _is_passing_fault(error) and not isinstance(error, ConnectionError)  # that has been tried often enough


def pause_seconds(attempt: int) -> float:
    """How long to wait after the attempt of this number, counted from 1: longer each time, and not all at once."""
    return min(_LONGEST_PAUSE, random.random() * 2.0 ** (attempt - 1))  # noqa: S311  no secret


class Patience:
    """Makes the requests of one client again, and says so while nothing comes back.

    Args:
        endpoint: named in what is said.

    Attributes:
        over: whether something was given up because nothing came for too long; then nothing is begun again.
    """

    def __init__(self, endpoint: str) -> None:
        self.over = False
        self._endpoint = endpoint
        self._lock = threading.Lock()
        self._waiting: dict[int, float] = {}  # thread -> when its request was sent
        self._watch: threading.Timer | None = None
        self._said = self._said_again = 0.0

    def attend(self, client: Any) -> None:
        """Take the place of the client's own repetitions."""
        client.meta.events.register("before-send.s3", self._sent)
        client.meta.events.register("needs-retry.s3", self._answered)

    def is_left(self, since: float) -> bool:
        """Whether to try again what has been silent since then, by `time.monotonic()`."""
        self.over = self.over or time.monotonic() - since >= PATIENCE_SECONDS
        return not self.over

    def say_again(self, trouble: str, since: float) -> None:
        """Say that something is tried again, where that takes long, and not more often than somebody can read."""
        now = time.monotonic()
        if now - since >= _WORD_SECONDS and now - self._said_again >= _WORD_SECONDS:
            self._said_again = now
            say(f"the store at {self._endpoint}: {trouble}; trying again for {PATIENCE_SECONDS + since - now:.0f} s")

    def _sent(self, **_: Any) -> None:
        with self._lock:
            self._waiting[threading.get_ident()] = time.monotonic()
            if self._watch is None:
                self._look_later()

    def _answered(self, response: Any, attempts: int, caught_exception: Exception | None,
                  request_dict: dict[str, Any], **_: Any) -> float | None:
        """After each attempt: the seconds after which to try again; None to take what has come."""
        now = time.monotonic()
        with self._lock:
            took = now - self._waiting.pop(threading.get_ident(), now)
        if caught_exception is not None:
            passing, trouble = _is_passing_fault(caught_exception), type(caught_exception).__name__
        else:
            error = response[1].get("Error", {})
            passing = _is_passing(response[0].status_code, str(error.get("Code", "")))
            trouble = str(error.get("Code") or response[0].status_code)
        if not passing or attempts >= ATTEMPTS:
            return None
        context = request_dict["context"]
        if _BEGAN not in context or took > CONNECT_SECONDS + READ_SECONDS:  # so long an attempt has moved bytes
            context[_BEGAN] = now - min(took, READ_SECONDS)
        if not self.is_left(context[_BEGAN]):
            return None
        self.say_again(trouble, context[_BEGAN])
        return pause_seconds(attempts)

    def _look_later(self) -> None:
        self._watch = threading.Timer(_WORD_SECONDS, self._look)
        self._watch.daemon = True
        self._watch.start()

    def _look(self) -> None:
        """Say that an answer is waited for; ends where none is."""
        with self._lock:
            self._watch = None
            oldest = min(self._waiting.values(), default=None)
            if oldest is not None:
                self._look_later()
        now = time.monotonic()
        if oldest is not None and now - oldest >= _WORD_SECONDS and now - self._said >= _WORD_SECONDS:
            self._said = now
            say(f"the store at {self._endpoint}: no answer for {now - oldest:.0f} s; waiting")


def _is_passing_fault(error: BaseException) -> bool:
    from botocore import exceptions as boto

    faults = (boto.HTTPClientError, boto.ConnectionError, boto.IncompleteReadError)
    return isinstance(error, faults) and not isinstance(error, boto.SSLError)


def _is_passing(status: int, code: str) -> bool:
    return status >= 500 or status == 429 or code in ("RequestTimeout", "SlowDown", "Throttling", "TooManyRequests")
