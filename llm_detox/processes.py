"""Processes that outlive the command which started them: start detached, recognise again, end exactly these; their
surroundings; and what the machine can do, measured and not guessed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llm_detox.errors import DetoxError

_children: dict[int, subprocess.Popen[bytes]] = {}
_LISTENS = "0A"  # a socket's state in /proc/net/tcp
_SHOWN_COMMAND = 100


@dataclass(frozen=True)
class Process:
    """A process of ours. `started` distinguishes it from a later process with the same pid."""

    name: str
    pid: int
    started: str
    log: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@contextmanager
def interrupted_by_sigterm(before: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does, so that it can clean up. Only the main thread gets signals.

    Args:
        before: what is done first when the signal comes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: object) -> None:
        before()
        raise KeyboardInterrupt

    handler = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)


def spawn(
    name: str, command: Sequence[str], *, log: Path, env: Mapping[str, str] | None = None, cwd: Path | None = None,
    lifeline: bool = False,
) -> Process:
    """Start a detached process (its own session) that writes to `log`.

    Args:
        name: for messages.
        command: the program and its arguments.
        log: takes what it prints.
        env, cwd: see `subprocess.Popen`.
        lifeline: whether its standard input is a pipe that ends with this Python, however that ends.

    Raises:
        DetoxError: the program cannot be started.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    try:
        with log.open("ab") as output:
            child = subprocess.Popen(
                list(command), stdin=subprocess.PIPE if lifeline else subprocess.DEVNULL, stdout=output,
                stderr=subprocess.STDOUT, env=None if env is None else dict(env), cwd=cwd, start_new_session=True)
    except OSError as error:
        raise DetoxError(f"{name} cannot be started: {error.strerror}", place=str(command[0]),
                         remedy="check that it is installed and may be executed") from error
    _children[child.pid] = child
    return Process(name, child.pid, _start_time(child.pid) or "", str(log))


def is_running(process: Process) -> bool:
    """Whether this very process is alive; a stranger with the same pid does not count."""
    child = _children.get(process.pid)
    if child is not None and child.poll() is not None:
        return False
    return bool(process.started) and _start_time(process.pid) == process.started


def exit_code(process: Process) -> int | None:
    """The exit status, if this Python started the process and it has ended."""
    child = _children.get(process.pid)
    return None if child is None else child.poll()


def stop(process: Process, grace_seconds: float = 15.0) -> bool:
    """End the process and its group: SIGTERM, after the grace SIGKILL. False when it was gone already."""
    if not is_running(process):
        _children.pop(process.pid, None)
        return False
    _signal_group(process, signal.SIGTERM)
    deadline = time.monotonic() + grace_seconds
    while is_running(process) and time.monotonic() < deadline:
        time.sleep(0.05)
    if is_running(process):
        _signal_group(process, signal.SIGKILL)
        while is_running(process):
            time.sleep(0.05)
    _children.pop(process.pid, None)
    return True


def stop_all(running: Sequence[Process], grace_seconds: float = 15.0) -> list[Process]:
    """End several processes at the same time; returns those that were running, in the order given."""
    with ThreadPoolExecutor(max(len(running), 1)) as pool:
        ended = pool.map(lambda process: stop(process, grace_seconds), running)
        return [process for process, was_running in zip(running, ended, strict=True) if was_running]


def last_lines(log: str | Path, count: int = 12) -> str:
    """The end of a log, for error messages."""
    with suppress(OSError):
        return "\n".join(Path(log).read_text("utf-8", errors="replace").splitlines()[-count:])
    return ""


def free_ports(count: int) -> list[int]:
    """Ports on loopback that are free now, all different."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


def check_port(port: int, purpose: str, host: str = "127.0.0.1") -> int:
    """The port, if nothing listens on it.

    Raises:
        DetoxError: the port is in use or may not be taken.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise DetoxError(f"port {port} for {purpose} cannot be used: {error.strerror}", place=f"{host}:{port}",
                             remedy=f"{_remedy_for(port)}, or choose another port") from None
    return port


def listener(port: int) -> tuple[int, str] | None:
    """Pid and command of the process that listens on a TCP port; None where this system or user cannot tell."""
    inodes = set()
    for table in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in Path(f"/proc/net/{table}").read_text("utf-8").splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTENS and int(fields[1].rpartition(":")[2], 16) == port:
                    inodes.add(f"socket:[{fields[9]}]")
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended, or is somebody else's
            if any(os.readlink(file) in inodes for file in (process / "fd").iterdir()):
                command = (process / "cmdline").read_bytes().decode("utf-8", "replace")
                return int(process.name), command.replace("\0", " ").strip()
    return None


def _remedy_for(port: int) -> str:
    holder = listener(port)
    if holder is None:
        return "end the program that listens there"
    pid, command = holder
    return f"process {pid} listens there ({command[:_SHOWN_COMMAND]}): end it with `kill {pid}`"


def _signal_group(process: Process, number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _start_time(pid: int) -> str | None:
    """When the process started, in the system's own words; None for a dead one or a zombie."""
    with suppress(OSError):
        # The name in parentheses may hold spaces, so fields are counted after it: state is 3, starttime 22.
        fields = Path(f"/proc/{pid}/stat").read_text("utf-8", errors="replace").rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    if Path("/proc/self").exists():
        return None
    shown = subprocess.run(["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    state, _, started = shown.stdout.strip().partition(" ")
    return started.strip() if started and not state.startswith("Z") else None


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set variables for the processes that are started inside, and put back what was there."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def matmul_gflops(seconds: float = 1.0) -> float:
    """Rate of float32 matrix products on this machine's CPU cores, in GFLOP/s.

    The best product of the time counts: what else the machine does for a moment is not its speed.
    """
    import torch

    size = 1024
    left, right = torch.rand(size, size), torch.rand(size, size)
    left @ right  # the first product sets up threads and caches
    best, end = float("inf"), time.perf_counter() + seconds
    while (started := time.perf_counter()) < end:
        left @ right
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best / 1e9


def peak_memory_bytes() -> int:
    """The largest resident set that this process has had."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
