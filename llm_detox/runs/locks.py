"""Locks: an output, a state file or a thing of the cache is written by one process at a time.

The lock of `FOLDER/NAME` is the file `FOLDER/.NAME.lock`, held by flock(2). The system frees it however its holder
ends, so what a killed process left is taken over. While it is held, the file says by whom.

Some network and object-store mounts know no such locks. There the work is done without one, and nothing is said:
whoever starts processes on such a mount gives each its own output, as Kubeflow does (every pod has its own disk).
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shlex
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from llm_detox.errors import DetoxError, without_logins
from llm_detox.progress import say

_UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}
_POLL_SECONDS = 0.2
_SHOWN_COMMAND = 100
_LONGEST_NOTE = 4096
_held: set[int] = set()


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock: its command, and since when (UTC)."""

    pid: int
    host: str
    command: str
    since: str

    @classmethod
    def here(cls) -> Holder:
        command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
        return cls(os.getpid(), socket.gethostname(), without_logins(command)[:_SHOWN_COMMAND],
                   datetime.now(UTC).isoformat(" ", "seconds"))

    @classmethod
    def noted_in(cls, file: int) -> Holder | None:
        """None where it is not written yet, or by something else."""
        try:
            note = json.loads(os.pread(file, _LONGEST_NOTE, 0))
            return cls(int(note["pid"]), str(note["host"]), str(note["command"]), str(note["since"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def __str__(self) -> str:
        elsewhere = "" if self.host == socket.gethostname() else f" on {self.host}"
        return f"process {self.pid}{elsewhere} (`{self.command}`)"


@contextmanager
def locked(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Hold the lock of a file or folder, which need not exist; its parent folder is made.

    Args:
        path: what is written within the block.
        wait: for as long as another process holds it, and say so; otherwise that is an error.

    Yields:
        Whether it is held: False where the file system has no locks.

    Raises:
        DetoxError: another process holds it; the message says which one, and how to go on.
        OSError: the folder cannot be written.
    """
    path = Path(os.path.abspath(path))
    lock = _lock_of(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    file = _acquire(lock, path, wait)
    try:
        yield file is not None
    finally:
        if file is not None:
            _held.discard(file)
            with suppress(OSError):  # the folder may be gone
                lock.unlink()  # while it is held: who opened it meanwhile sees that it is no longer there
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_UN)  # also for a child that is just being forked
            os.close(file)


def noted_holder(path: Path) -> Holder | None:
    """Who holds the lock of a file or folder, as the lock's note says; None where nobody on this machine does."""
    path = Path(os.path.abspath(path))
    try:
        file = os.open(_lock_of(path), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    holder = Holder.noted_in(file)
    os.close(file)
    return holder if holder and Path(f"/proc/{holder.pid}").exists() else None


def _lock_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


def _acquire(lock: Path, path: Path, wait: bool) -> int | None:
    said = False
    while True:
        file = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_current(file, lock):
                _note_holder(file)
                _held.add(file)
                return file
            os.close(file)
            continue
        except OSError as error:
            holder = Holder.noted_in(file)
            os.close(file)
            if error.errno in _UNSUPPORTED:
                lock.unlink(missing_ok=True)
                return None
            if not isinstance(error, BlockingIOError):
                raise
        if not wait:
            raise _in_use(path, holder)
        if not said:
            say(f"waiting for {path}: {holder or 'another process'} is making it")
            said = True
        time.sleep(_POLL_SECONDS)


def _is_current(file: int, lock: Path) -> bool:
    """Whether the opened file is still the one at its place: the last holder removes it."""
    try:
        return os.path.samestat(os.fstat(file), os.stat(lock, follow_symlinks=False))
    except FileNotFoundError:
        return False


def _note_holder(file: int) -> None:
    with suppress(OSError):  # the lock holds without its note, on a full disk for example
        os.ftruncate(file, 0)
        os.pwrite(file, json.dumps(asdict(Holder.here())).encode(), 0)


def _in_use(path: Path, holder: Holder | None) -> DetoxError:
    if holder is None:
        return DetoxError("another process is writing this", place=str(path),
                          remedy="wait until it has ended, or choose another place")
    end = f"`kill {holder.pid}`" if holder.host == socket.gethostname() else f"`kill {holder.pid}` on {holder.host}"
    return DetoxError(f"{holder} has been writing this since {holder.since}", place=str(path),
                      remedy=f"wait until it has ended, or end it with {end} and run this again: what it has done is "
                             "kept where the step keeps its work; or choose another place")


def _let_go() -> None:
    """A forked process inherits the locks' files; it must not hold them longer than the process that took them."""
    for file in _held:
        with suppress(OSError):
            os.close(file)
    _held.clear()


os.register_at_fork(after_in_child=_let_go)
