"""Many files at once, large ones in parts; what an interrupted transfer has brought over is not sent again.

Parts are whole requests, so a part is either there or not. Of a download, a list beside the file says which parts are
there; of an upload, the store says it.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

from llm_detox.errors import DetoxError
from llm_detox.progress import Task, task
from llm_detox.storage.layout import MEBIBYTE, PUBLISH_AGAIN, FileSum
from llm_detox.storage.patience import error_code, pause_seconds
from llm_detox.storage.s3 import Place, is_missing

THREADS = 8
PARTS_SUFFIX = ".llm-detox-parts"
_READS = 5
_PIECE = 2**18


@contextmanager
def transfers(client: Any, part: int, description: str, total_bytes: int) -> Iterator[Transfers]:
    """Start transfers inside the block; all have ended when it ends.

    Args:
        client: of boto3.
        part: bytes a part; files from this size on go in parallel parts.
        total_bytes: of all files, for the progress shown.

    Raises:
        the first failure; the others end with the request in progress.
    """
    with (task(description, max(1, total_bytes // MEBIBYTE), "MiB") as work,
          ThreadPoolExecutor(THREADS, "transfer") as pool):
        running = Transfers(client, part, pool, work)
        try:
            yield running
            running.wait()
        except BaseException:
            running.cancel()
            raise


class Transfers:
    """The transfers of one block: `upload`, `download` and `copy` return at once."""

    def __init__(self, client: Any, part: int, pool: ThreadPoolExecutor, work: Task) -> None:
        self.client, self.part = client, part
        self._pool, self._work = pool, work
        self._futures: list[Future[None]] = []
        self._bytes = self._shown = 0
        self._over, self._lock = False, threading.Lock()

    def upload(self, path: Path, to: Place, sums: FileSum) -> None:
        """Send a file; its SHA-256 goes into the object's metadata."""
        if sums.bytes < self.part:
            self.submit(lambda: self._put(path, to, sums))
        else:
            self.submit(_Upload(self, path, to, sums).begin)

    def download(self, source: Place, path: Path, size: int, content: str, done: Callable[[], None] | None = None, *,
                 etag: str | None = None) -> None:
        """Fetch an object.

        Args:
            source: where it is.
            path: the file to write.
            size: in bytes.
            content: what tells it from others; parts of the same content are kept from an earlier attempt.
            done: called when it is there.
            etag: the store should give nothing but this object.
        """
        self.submit(_Download(self, source, path, size, content, done, etag).begin)

    def copy(self, source: Place, to: Place, sums: FileSum) -> None:
        """Copy inside the store."""
        from boto3.s3.transfer import TransferConfig

        # The other client sends checksum headers that old stores refuse.
        config = TransferConfig(multipart_threshold=self.part, multipart_chunksize=self.part,
                                preferred_transfer_client="classic")
        extra = {"Metadata": {"sha256": sums.sha256}, "MetadataDirective": "REPLACE"}

        def run() -> None:
            self.client.copy({"Bucket": source.bucket, "Key": source.key}, to.bucket, to.key, ExtraArgs=extra,
                             Config=config)
            self.count(sums.bytes)

        self.submit(run)

    def submit(self, work: Callable[[], None]) -> None:
        def run() -> None:
            if not self._over:
                work()

        with self._lock:
            self._futures.append(self._pool.submit(run))

    def wait(self) -> None:
        number = 0
        while number < len(self._futures):  # work that runs may submit more
            self._futures[number].result()
            number += 1

    def cancel(self) -> None:
        self._over = True
        with self._lock:
            for future in self._futures:
                future.cancel()

    def count(self, transferred: int) -> None:
        with self._lock:
            self._bytes += transferred
            whole = self._bytes // MEBIBYTE
            if whole != self._shown:
                self._work.advance(whole - self._shown)
                self._shown = whole

    def _put(self, path: Path, to: Place, sums: FileSum) -> None:
        self.client.put_object(Bucket=to.bucket, Key=to.key, Body=path.read_bytes(), Metadata={"sha256": sums.sha256})
        self.count(sums.bytes)


class _Upload:
    """One file in parts. A failure leaves the parts in the store, where the next upload of the file finds them."""

    def __init__(self, running: Transfers, path: Path, to: Place, sums: FileSum) -> None:
        self._running, self._path, self._sums = running, path, sums
        self._client, self._size = running.client, running.part
        self._at = {"Bucket": to.bucket, "Key": to.key}
        self._etags: dict[int, str] = {}
        self._left, self._lock = 0, threading.Lock()

    def begin(self) -> None:
        from botocore.exceptions import ClientError

        try:
            self._take_up_earlier()
        except ClientError as error:
            if error_code(error) not in ("NotImplemented", "AccessDenied", "NoSuchUpload"):
                raise  # else everything is sent
        if "UploadId" not in self._at:
            self._at["UploadId"] = str(self._client.create_multipart_upload(
                **self._at, Metadata={"sha256": self._sums.sha256})["UploadId"])
        missing = [n for n in range(1, len(self._sums.parts) + 1) if n not in self._etags]
        self._running.count(self._sums.bytes - sum(self._length(n) for n in missing))
        self._left = len(missing)
        if not missing:
            self._complete()
        for number in missing:
            self._running.submit(lambda number=number: self._send(number))  # type: ignore[misc]

    def _take_up_earlier(self) -> None:
        """Look for an earlier upload of this content: the key is made of it, so there are no others here."""
        answer = self._client.list_multipart_uploads(Bucket=self._at["Bucket"], Prefix=self._at["Key"])
        uploads = [one for one in answer.get("Uploads", ()) if one["Key"] == self._at["Key"]]
        if not uploads:
            return
        earlier = {**self._at, "UploadId": str(max(uploads, key=lambda one: one["Initiated"])["UploadId"])}
        for page in self._client.get_paginator("list_parts").paginate(**earlier):
            for one in page.get("Parts", ()):
                number, etag = int(one["PartNumber"]), one["ETag"].strip('"')
                if number <= len(self._sums.parts) and etag == self._sums.parts[number - 1]:
                    self._etags[number] = etag
        self._at = earlier

    def _length(self, number: int) -> int:
        return min(self._size, self._sums.bytes - (number - 1) * self._size)

    def _send(self, number: int) -> None:
        with self._path.open("rb") as file:
            body = os.pread(file.fileno(), self._length(number), (number - 1) * self._size)
        etag = self._client.upload_part(**self._at, PartNumber=number, Body=body)["ETag"].strip('"')
        self._running.count(len(body))
        with self._lock:
            self._etags[number] = etag
            self._left -= 1
            last = self._left == 0
        if last:
            self._complete()

    def _complete(self) -> None:
        parts = [{"PartNumber": number, "ETag": etag} for number, etag in sorted(self._etags.items())]
        self._client.complete_multipart_upload(**self._at, MultipartUpload={"Parts": parts})


class _Download:
    """One file, in parts where it is large."""

    def __init__(self, running: Transfers, source: Place, path: Path, size: int, content: str,
                 done: Callable[[], None] | None, etag: str | None) -> None:
        self._running, self._path, self._size, self._content, self._done = running, path, size, content, done
        self._source = source
        self._at = {"Bucket": source.bucket, "Key": source.key, **({"IfMatch": f'"{etag}"'} if etag else {})}
        self._list = path.with_name(path.name + PARTS_SUFFIX)
        self._left, self._lock = 0, threading.Lock()

    def begin(self) -> None:
        count = -(-self._size // self._running.part)
        if count <= 1:
            with _opened(self._path, os.O_CREAT | os.O_TRUNC):
                pass
            self._read(0, None)
            self._finish()
            return
        title = f"{self._content}: {self._size} bytes in parts of {self._running.part}"
        there = _listed(self._list, title) if self._path.is_file() else set()
        if not there:
            self._path.unlink(missing_ok=True)
            self._list.unlink(missing_ok=True)
            with _opened(self._list, os.O_CREAT | os.O_EXCL) as file:
                os.write(file.fileno(), f"{title}\n".encode())
        with _opened(self._path, os.O_CREAT) as file:
            file.truncate(self._size)
        missing = [number for number in range(count) if number not in there]
        self._running.count(self._size - sum(self._length(number) for number in missing))
        self._left = len(missing)
        if not missing:
            self._finish()
        for number in missing:
            self._running.submit(lambda number=number: self._fetch(number))  # type: ignore[misc]

    def _length(self, number: int) -> int:
        return min(self._running.part, self._size - number * self._running.part)

    def _fetch(self, number: int) -> None:
        start = number * self._running.part
        self._read(start, start + self._length(number) - 1)
        with self._lock:
            with _opened(self._list, os.O_APPEND) as file:
                os.write(file.fileno(), f"{number}\n".encode())
            self._left -= 1
            last = self._left == 0
        if last:
            self._finish()

    def _read(self, start: int, last: int | None) -> None:
        """Write the object's bytes from `start` to `last`, or all of it, to their place in the file."""
        from botocore.exceptions import ClientError, HTTPClientError, IncompleteReadError

        patience, since = self._running.client.patience, time.monotonic()
        for attempt in range(1, _READS + 1):
            place = start
            try:
                for piece in self._pieces(start, last):
                    write_at(self._path, place, piece)
                    place, since = place + len(piece), time.monotonic()
                break
            except (HTTPClientError, IncompleteReadError) as error:  # broken after the headers, where botocore gives up
                if attempt == _READS or not patience.is_left(since):
                    raise
                patience.say_again(type(error).__name__, since)
                time.sleep(pause_seconds(attempt))
            except ClientError as error:
                self._explain(error)
                raise
        self._running.count(place - start)

    def _pieces(self, start: int, last: int | None) -> Iterator[bytes]:
        """The object's bytes, exactly as many as there have to be."""
        from botocore.exceptions import IncompleteReadError

        wanted = {} if last is None else {"Range": f"bytes={start}-{last}"}
        expected, come = self._size if last is None else last + 1 - start, 0
        # Small pieces: from a mebibyte on, the page faults of each new buffer cost more than all the rest.
        for piece in self._running.client.get_object(**self._at, **wanted)["Body"].iter_chunks(_PIECE):
            come += len(piece)
            if come > expected:
                break  # a store that knows no ranges sends everything
            yield piece
        if come != expected and last is None:
            raise DetoxError(f"the object has {'more' if come > expected else 'less'} than the {expected} bytes that "
                             "it should have", place=str(self._source), remedy=PUBLISH_AGAIN)
        if come != expected:
            raise IncompleteReadError(actual_bytes=come, expected_bytes=expected)

    def _explain(self, error: Exception) -> None:
        """Name the object where it has gone, or is another one by now."""
        if is_missing(error):
            raise DetoxError("the object is missing in the store", place=str(self._source),
                             remedy=PUBLISH_AGAIN) from error
        if error_code(error) in ("PreconditionFailed", "412", "InvalidRange", "416"):
            raise DetoxError("the object was changed while it was fetched", place=str(self._source),
                             remedy="fetch it again") from error

    def _finish(self) -> None:
        self._list.unlink(missing_ok=True)
        if self._done:
            self._done()


def write_at(path: Path, start: int, data: bytes) -> None:
    """Write the bytes into an existing file from `start` on."""
    with _opened(path) as file:
        view = memoryview(data)
        while view:  # a disk that fills up may take a part of them
            written = os.pwrite(file.fileno(), view, start)
            view, start = view[written:], start + written


def _opened(path: Path, flags: int = 0) -> FileIO:
    """A file to write, and never one that a link at its place leads to."""
    return FileIO(os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | flags, 0o666), "r+b")


def _listed(path: Path, title: str) -> set[int]:
    """The parts that a list names; none where it is of another file, or cut off."""
    try:
        first, *lines = path.read_text("utf-8").splitlines()
    except (OSError, ValueError):
        return set()
    return {int(line) for line in lines if line.isdigit()} if first == title else set()
