"""What wakes the stand-ins: the API server's watches, one for each kind, whoever asks and how often."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator

_AGAIN_SECONDS = 0.2


class Changes:
    """Counts the changes of objects by kind and namespace.

    Args:
        watch: the namespaces in which objects of a kind change, for as long as the server answers; what it raises
            ends nothing, it is called again.
    """

    def __init__(self, watch: Callable[[str], Iterator[str]]) -> None:
        self._watch = watch
        self._counts: Counter[tuple[str, str]] = Counter()
        self._followed: set[str] = set()
        self._news = threading.Condition()
        self._end = threading.Event()

    def follow(self, kinds: tuple[str, ...]) -> None:
        """Begin to count, where it has not begun."""
        with self._news:
            for kind in set(kinds) - self._followed:
                threading.Thread(target=self._run, args=(kind,), name=f"watch {kind}", daemon=True).start()
            self._followed.update(kinds)

    def wait(self, kinds: tuple[str, ...], namespace: str, known: int, seconds: float, end: threading.Event) -> int:
        """How many changes there have been, as soon as it is another number than is known, or after these seconds.

        Objects of no namespace count for each.
        """
        def count() -> int:
            return sum(self._counts[kind, place] for kind in kinds for place in (namespace, ""))

        with self._news:
            self._news.wait_for(lambda: end.is_set() or count() != known, seconds)
            return count()

    def wake(self) -> None:
        """Let those who wait see that their end has come."""
        with self._news:
            self._news.notify_all()

    def close(self) -> None:
        """Watch no more, once the server has ended what it answers."""
        self._end.set()

    def _run(self, kind: str) -> None:
        while not self._end.is_set():
            try:
                for namespace in self._watch(kind):
                    with self._news:
                        self._counts[kind, namespace] += 1
                        self._news.notify_all()
            except Exception:  # away, or not served yet: what is there is told anew with the next watch
                self._end.wait(_AGAIN_SECONDS)
