"""A thread that looks at the cluster whenever something has changed there, as controllers do."""

from __future__ import annotations

import threading
import traceback
from abc import ABC, abstractmethod
from typing import ClassVar

from tests.standins.cluster.api import CONFLICT, MISSING, Api, ApiAway, ApiError

_AGAIN_SECONDS = 0.2
_TOGETHER_SECONDS = 0.05  # changes often come several at once
_PASSING = (401, 403, MISSING, CONFLICT, 429, 500, 503, 504)


class Worker(ABC):
    """Runs `look` until the block ends. What a look breaks on is told when the block ends, as an AssertionError.

    Args:
        api: the administrator's.
        namespace: where.
        pause_seconds: the longest time between two looks.
    """

    kinds: ClassVar[tuple[str, ...]]  # a change of one of these leads to the next look

    def __init__(self, api: Api, namespace: str, pause_seconds: float = 2.0) -> None:
        self.api, self.namespace, self._pause = api, namespace, pause_seconds
        self.failures: list[str] = []
        self.changed = True  # since the look before this one
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name=type(self).__name__, daemon=True)

    @abstractmethod
    def look(self) -> None:
        """Compare what is wanted with what is there, and act."""

    def end(self) -> None:  # noqa: B027 - most have nothing to end
        """Called once, when the thread has ended."""

    def __enter__(self) -> Worker:
        self.api.changes.follow(self.kinds)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self.api.changes.wake()
        self._thread.join(30)
        self.end()
        assert not self.failures, "\n".join(self.failures)

    def _run(self) -> None:
        known, again = -1, False
        while not self._end.is_set():
            count = self.api.changes.wait(self.kinds, self.namespace, known, 0.0 if again else self._pause, self._end)
            self.changed, known = again or count != known, count
            if self._end.wait(_AGAIN_SECONDS if again else _TOGETHER_SECONDS if self.changed else 0.0):
                return
            try:
                self.look()
                again = False
            except ApiAway:
                again = True
            except ApiError as error:
                # Somebody was faster, or the server has just started: the next look sees it.
                again, failure = True, f"{type(self).__name__}: {error}"
                if error.status not in _PASSING and failure not in self.failures:
                    self.failures.append(failure)
            except Exception:
                self.failures.append(f"{type(self).__name__}: {traceback.format_exc()}")
                return
