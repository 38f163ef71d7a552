"""A thread that looks at the cluster again and again, as controllers do."""

from __future__ import annotations

import threading
import traceback
from abc import ABC, abstractmethod

from tests.standins.cluster.api import CONFLICT, MISSING, Api, ApiAway, ApiError

_AWAY_SECONDS = 0.2
_PASSING = (401, 403, MISSING, CONFLICT, 429, 500, 503, 504)


class Worker(ABC):
    """Runs `look` until the block ends. What a look breaks on is told when the block ends, as an AssertionError.

    Args:
        api: the administrator's.
        namespace: where.
        pause_seconds: between two looks.
    """

    def __init__(self, api: Api, namespace: str, pause_seconds: float = 0.1) -> None:
        self.api, self.namespace, self._pause = api, namespace, pause_seconds
        self.failures: list[str] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name=type(self).__name__, daemon=True)

    @abstractmethod
    def look(self) -> None:
        """Compare what is wanted with what is there, and act."""

    def end(self) -> None:  # noqa: B027 - most have nothing to end
        """Called once, when the thread has ended."""

    def __enter__(self) -> Worker:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join(30)
        self.end()
        assert not self.failures, "\n".join(self.failures)

    def _run(self) -> None:
        while not self._end.wait(self._pause):
            try:
                self.look()
            except ApiAway:
                self._end.wait(_AWAY_SECONDS)
            except ApiError as error:
                # Somebody was faster, or the server has just started: the next look sees it.
                failure = f"{type(self).__name__}: {error}"
                if error.status not in _PASSING and failure not in self.failures:
                    self.failures.append(failure)
            except Exception:
                self.failures.append(f"{type(self).__name__}: {traceback.format_exc()}")
                return
