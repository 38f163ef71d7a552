"""Detached processes are recognised again and ended exactly."""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
import sys
import time
from pathlib import Path

import pytest

from llm_detox import processes
from llm_detox.errors import DetoxError


def wait_for(path: Path) -> str:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if path.exists() and path.read_text():
            return path.read_text()
        time.sleep(0.02)
    raise AssertionError(f"{path} did not come")


def sleeper(tmp_path: Path, code: str) -> processes.Process:
    process = processes.spawn("sleeper", [sys.executable, "-c", code, str(tmp_path / "up")], log=tmp_path / "log")
    wait_for(tmp_path / "up")
    return process


def test_a_process_and_its_children_end_and_strangers_stay(tmp_path: Path) -> None:
    process = sleeper(tmp_path, (
        "import subprocess,sys,time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "open(sys.argv[1], 'w').write(str(child.pid)); time.sleep(60)"))
    child = int((tmp_path / "up").read_text())
    assert processes.is_running(process)
    stranger = dataclasses.replace(process, started="1")
    assert not processes.is_running(stranger)
    assert not processes.stop(stranger)
    assert processes.is_running(process)
    assert processes.stop(process)
    assert not processes.is_running(process)
    time.sleep(0.1)
    assert processes._start_time(child) is None
    assert not processes.stop(process)


def test_one_that_ignores_sigterm_is_killed_after_the_grace(tmp_path: Path) -> None:
    process = sleeper(tmp_path, (
        "import signal,sys,time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "open(sys.argv[1], 'w').write('up'); time.sleep(60)"))
    assert processes.stop(process, grace_seconds=0.2)
    assert not processes.is_running(process)


def test_the_exit_code_and_the_end_of_the_log_are_kept(tmp_path: Path) -> None:
    process = processes.spawn("failing", [sys.executable, "-c", "print('why'); raise SystemExit(3)"],
                              log=tmp_path / "log")
    while processes.is_running(process):
        time.sleep(0.02)
    assert processes.exit_code(process) == 3
    assert processes.last_lines(process.log) == "why"


def test_a_program_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DetoxError, match="the engine cannot be started"):
        processes.spawn("the engine", [str(tmp_path / "absent")], log=tmp_path / "log")


def test_a_taken_port_is_refused_and_free_ones_differ() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(DetoxError, match=f"port {port} for the gateway") as caught:
            processes.check_port(port, "the gateway")
        assert f"kill {os.getpid()}`" in str(caught.value), "the message says who holds the port and how to end it"
        assert Path(sys.executable).name in str(caught.value)
    ports = processes.free_ports(20)
    assert len(set(ports)) == 20
    assert all(processes.check_port(port, "it") == port for port in ports)


def test_sigterm_ends_a_block_as_ctrl_c_does_and_nothing_after_it() -> None:
    outside: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: outside.append(number))
    first: list[str] = []
    try:
        with pytest.raises(KeyboardInterrupt), processes.interrupted_by_sigterm(lambda: first.append("told")):
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (first, outside) == (["told"], [signal.SIGTERM])
