"""Many files at once through boto3's transfer manager, with progress."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from llm_detox.progress import Task, task
from llm_detox.storage.checksums import MEBIBYTE

THREADS = 16


class _Counter:
    """Adds up bytes from all threads and shows whole MiB."""

    def __init__(self, work: Task) -> None:
        self._work, self._bytes, self._shown, self._lock = work, 0, 0, threading.Lock()

    def on_progress(self, bytes_transferred: int, **_: Any) -> None:
        with self._lock:
            self._bytes += bytes_transferred
            whole = self._bytes // MEBIBYTE
            if whole != self._shown:
                self._work.advance(whole - self._shown)
                self._shown = whole


@contextmanager
def transfers(client: Any, part: int, description: str, total_bytes: int) -> Iterator[Transfers]:
    """Start transfers inside the block; all have ended when it ends.

    Args:
        client: of boto3.
        part: bytes a part; files from this size on go in parallel parts.
        total_bytes: of all files, for the progress shown.

    Raises:
        the first failure; the others are cancelled then.
    """
    from boto3.s3.transfer import ProgressCallbackInvoker, TransferConfig, create_transfer_manager

    config = TransferConfig(
        multipart_threshold=part, multipart_chunksize=part, max_concurrency=THREADS,
        preferred_transfer_client="classic")  # the other one sends checksum headers that old stores refuse
    with task(description, max(1, total_bytes // MEBIBYTE), "MiB") as work:
        invoker = ProgressCallbackInvoker(lambda count: counter.on_progress(count))
        counter = _Counter(work)
        manager = create_transfer_manager(client, config)
        running = Transfers(manager, [invoker])
        try:
            yield running
            running.wait()
        except BaseException:
            running.cancel()  # shutdown(cancel=True) of some s3transfer releases fails itself
            raise
        finally:
            manager.shutdown()


class Transfers:
    """The transfers of one block: `upload`, `download` and `copy` return at once."""

    def __init__(self, manager: Any, subscribers: list[Any]) -> None:
        self._manager, self._subscribers = manager, subscribers
        self._futures: list[tuple[Any, Callable[[], None] | None]] = []

    def upload(self, path: str, bucket: str, key: str, metadata: dict[str, str]) -> None:
        self._add(self._manager.upload(path, bucket, key, {"Metadata": metadata}, self._subscribers))

    def download(self, bucket: str, key: str, path: str, done: Callable[[], None] | None = None) -> None:
        """Download to `path`; `done` is called in `wait`, after this one has ended well."""
        self._add(self._manager.download(bucket, key, path, None, self._subscribers), done)

    def copy(self, source: dict[str, str], bucket: str, key: str, metadata: dict[str, str]) -> None:
        extra = {"Metadata": metadata, "MetadataDirective": "REPLACE"}
        self._add(self._manager.copy(source, bucket, key, extra, self._subscribers))

    def wait(self) -> None:
        for future, done in self._futures:
            future.result()
            if done:
                done()

    def cancel(self) -> None:
        for future, _ in self._futures:
            future.cancel()

    def _add(self, future: Any, done: Callable[[], None] | None = None) -> None:
        self._futures.append((future, done))
