"""Locks: one process at a time writes an output, and whoever comes second is told who does."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from llm_detox.errors import DetoxError
from llm_detox.runs.cache import made_once
from llm_detox.runs.locks import locked

_HOLD = ("import sys; from pathlib import Path; from llm_detox.runs.locks import locked\n"
         "with locked(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()")


@contextmanager
def held(path: Path, program: str = _HOLD) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock of a path until the block ends."""
    holder = subprocess.Popen([sys.executable, "-c", program, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                              text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    try:
        yield holder
    finally:
        holder.communicate()


def test_the_second_is_told_who_holds_it_since_when_and_how_to_go_on(tmp_path: Path) -> None:
    with held(tmp_path / "out") as holder, pytest.raises(DetoxError) as caught, locked(tmp_path / "out"):
        pass
    message = str(caught.value)
    assert f"process {holder.pid} (`-c {tmp_path / 'out'}`) has been writing this since 20" in message
    assert str(tmp_path / "out") in message
    assert f"kill {holder.pid}" in message
    assert "wait until it has ended" in message


def test_what_a_killed_process_held_is_taken_over(tmp_path: Path) -> None:
    with held(tmp_path / "out") as holder:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        assert (tmp_path / ".out.lock").exists()
        with locked(tmp_path / "out") as alone:
            assert alone
    assert list(tmp_path.iterdir()) == []


def test_a_lock_is_free_again_when_its_holder_ends(tmp_path: Path) -> None:
    with held(tmp_path / "out"):
        pass
    with locked(tmp_path / "out"), pytest.raises(DetoxError, match="has been writing"), locked(tmp_path / "out"):
        pass
    assert list(tmp_path.iterdir()) == []


_FORK = ("import os, sys; from pathlib import Path; from llm_detox.runs.locks import locked\n"
         "with locked(Path(sys.argv[1])):\n"
         "    if not os.fork(): print('held', flush=True)\n"
         "    sys.stdin.read()")


def test_a_forked_process_does_not_hold_the_lock_longer_than_the_one_that_took_it(tmp_path: Path) -> None:
    with held(tmp_path / "out", _FORK) as holder:  # its child, which said so, lives until the block ends
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        with locked(tmp_path / "out") as alone:
            assert alone


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_worked_on_without_a_word(
        number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def unsupported(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with locked(tmp_path / "out") as alone:
        assert not alone
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr() == ("", "")


def test_a_planted_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / ".out.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"), locked(tmp_path / "out"):
        pass
    assert not (tmp_path / "elsewhere").exists()


_MAKE = ("import sys, time; from pathlib import Path; from llm_detox.runs.cache import made_once\n"
         "def make(path): print('making', flush=True); sys.stdin.read(); path.write_text('made once')\n"
         "print(made_once(Path(sys.argv[1]), make).read_text(), flush=True)")


def test_what_two_processes_want_from_the_cache_is_made_once(tmp_path: Path) -> None:
    start = [sys.executable, "-c", _MAKE, str(tmp_path / "thing")]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    first = subprocess.Popen(start, **pipes, text=True)
    assert first.stdout is not None
    assert first.stdout.readline() == "making\n"
    second = subprocess.Popen(start, **pipes, text=True)
    assert second.stderr is not None
    assert f"process {first.pid}" in second.stderr.readline()
    assert first.communicate()[0] == "made once\n"
    assert second.communicate()[0] == "made once\n"
    assert [path.name for path in tmp_path.iterdir()] == ["thing"]


def test_what_cannot_be_made_leaves_nothing_in_the_cache(tmp_path: Path) -> None:
    (tmp_path / ".thing.1234.part").mkdir()  # of a process that was killed

    def full(path: Path) -> None:
        path.write_text("half", "utf-8")
        raise RuntimeError("Error while serializing: No space left on device (os error 28)")

    with pytest.raises(DetoxError, match="the disk is full"):
        made_once(tmp_path / "thing", full)
    assert list(tmp_path.iterdir()) == []
