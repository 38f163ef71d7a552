"""One container of a pod: started, asked by its probes, started again when it ends, as a kubelet does it."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tests.standins.cluster.kubelet import PodEvent
from tests.standins.cluster.pod_state import ContainerState, Running, Terminated, Waiting
from tests.standins.node.enter import Mount, Spec
from tests.standins.node.environment import User, expanded
from tests.standins.node.probes import Probe
from tests.standins.node.sandbox import Sandbox

Object = dict[str, Any]
_ENTER = Path(__file__).with_name("enter.py")
_BACK_OFF_SECONDS, _LONGEST_BACK_OFF_SECONDS = 10.0, 300.0
_TICK_SECONDS = 0.05
_MESSAGE_BYTES = 2048
_KILLED = 137


@dataclass(frozen=True)
class Program:
    """What a container starts, worked out from its specification and its image."""

    command: list[str]
    environment: dict[str, str]
    user: User
    mounts: list[Mount]
    cwd: str = "/"


class Container:
    """A container, in a thread of its own.

    Args:
        specification: as the pod has it.
        program: what it starts.
        sandbox: the pod's network.
        folder: an own one, for logs and the root folder.
        restarts: the pod's restartPolicy; for an init container `OnFailure`, save where the pod's is `Never`.
        factor: periods, delays and pauses are divided by it.
        grace_seconds: between SIGTERM and SIGKILL.
        tell: takes events.
    """

    def __init__(self, specification: Object, program: Program, sandbox: Sandbox, folder: Path, *, restarts: str,
                 factor: float, grace_seconds: float, tell: Callable[[PodEvent], None]) -> None:
        self._specification, self._program, self._sandbox = specification, program, sandbox
        self._folder, self._restarts, self._factor, self._grace = folder, restarts, factor, grace_seconds
        self._tell = tell
        self.state = ContainerState(specification["name"], Waiting("ContainerCreating"))
        self.log = folder / "log"
        self._log_start = 0  # where the last start's output begins
        self._process: subprocess.Popen[bytes] | None = None
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._live, name=specification["name"], daemon=True)

    def start(self) -> None:
        """Begin."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._thread.start()

    def stop(self) -> None:
        """End it and wait until it has."""
        self._end.set()
        if self._thread.is_alive():
            self._thread.join()

    def run(self, command: list[str]) -> subprocess.Popen[bytes]:
        """Start another program in the container, as its user, with its variables."""
        user = self._program.user
        pid = (self._folder / "root" / "pid").read_text("utf-8")
        enter = ["nsenter", "--target", pid, "--mount", "--net", "--pid", "--ipc", "--uts", "--root", "--wd", "--",
                 "setpriv", f"--reuid={user.user}", f"--regid={user.group}", "--clear-groups", "env", "-i",
                 *(f"{name}={value}" for name, value in self._program.environment.items())]
        return subprocess.Popen([*enter, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                stdin=subprocess.DEVNULL, start_new_session=True)

    def _live(self) -> None:
        pause = _BACK_OFF_SECONDS
        while True:
            self._launch()
            ended = self._watch()
            self.state = replace(self.state, now=ended, ready=ended.exit_code == 0 and self._restarts != "Always",
                                 started=False)
            if self._end.is_set() or self._restarts == "Never" or (
                    self._restarts == "OnFailure" and ended.exit_code == 0):
                return
            self._tell(PodEvent("BackOff", f"Back-off restarting failed container {self.state.name}"))
            waits = Waiting("CrashLoopBackOff", f"back-off {pause:.0f}s restarting failed container={self.state.name}")
            if self._end.wait(1.0 / self._factor):  # the end is to be seen for a moment
                return
            self.state = replace(self.state, now=waits, last=ended, restarts=self.state.restarts + 1, ready=False)
            if self._end.wait(pause / self._factor):
                return
            pause = min(pause * 2, _LONGEST_BACK_OFF_SECONDS)

    def _launch(self) -> None:
        root = self._folder / "root"
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir()
        message = self._folder / "termination-log"
        message.write_bytes(b"")
        message.chmod(0o666)
        security = self._specification.get("securityContext", {})
        path = self._specification.get("terminationMessagePath", "/dev/termination-log")
        program = self._program
        spec = Spec(
            str(root), self._sandbox.pid, [*program.mounts, Mount(str(message), path, read_only=False)],
            bool(security.get("readOnlyRootFilesystem")), program.user.user, program.user.group,
            list(program.user.more_groups), program.command, program.environment, program.cwd)
        file = self._folder / "spec.json"
        file.write_text(json.dumps(asdict(spec)), "utf-8")
        self._log_start = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            self._process = subprocess.Popen([sys.executable, "-S", "-E", str(_ENTER), str(file)],
                                             stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True)
        while not (root / "pid").exists() and self._process.poll() is None:
            time.sleep(_TICK_SECONDS)
        self.state = replace(self.state, now=Running(), ready=False, started=False)

    def _watch(self) -> Terminated:
        """Ask the probes until the program ends, or has to."""
        assert self._process is not None
        process, begin = self._process, time.monotonic()
        startup, readiness, liveness = (self._probe(kind, begin) for kind in ("startup", "readiness", "liveness"))
        while process.poll() is None:
            if self._end.wait(_TICK_SECONDS):
                self._kill(process)
                break
            if startup and not startup.passed:
                if self._must_end(startup):
                    break
                continue
            self.state = replace(self.state, started=True)
            if readiness:
                self._asked(readiness)
            self.state = replace(self.state, ready=readiness.passed if readiness else True)
            if liveness and self._must_end(liveness):
                break
        return self._ended(process)

    def _probe(self, kind: str, begin: float) -> Probe | None:
        settings = self._specification.get(f"{kind}Probe")
        return Probe(kind.capitalize(), settings, self._specification, self._sandbox, self.run, self._factor,
                     begin) if settings else None

    def _asked(self, probe: Probe) -> None:
        if probe.ask(time.monotonic()) is False:
            self._tell(PodEvent("Unhealthy", probe.message))

    def _must_end(self, probe: Probe) -> bool:
        self._asked(probe)
        if not probe.failed:
            return False
        words = f"Container {self.state.name} failed {probe.kind.lower()} probe, will be restarted"
        self._tell(PodEvent("Killing", words, normal=True))
        if self._process:
            self._kill(self._process)
        return True

    def _kill(self, process: subprocess.Popen[bytes]) -> None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(self._grace)
        except subprocess.TimeoutExpired:
            if process.stdin:
                process.stdin.close()  # the kernel ends what is in its namespace
        process.wait()

    def _ended(self, process: subprocess.Popen[bytes]) -> Terminated:
        code = process.wait()
        if process.stdin:
            process.stdin.close()
        message = (self._folder / "termination-log").read_bytes()
        from_log = self._specification.get("terminationMessagePolicy") == "FallbackToLogsOnError"
        if not message and from_log and code != 0:
            message = self.log.read_bytes()[self._log_start:]
        return Terminated(code if code >= 0 else _KILLED, message=message[-_MESSAGE_BYTES:].decode("utf-8", "replace"))


def command_of(specification: Object, entrypoint: tuple[str, ...], environment: dict[str, str]) -> list[str]:
    """Command and arguments, with `$(NAME)` replaced."""
    command = [*specification.get("command", entrypoint), *specification.get("args", ())]
    return [expanded(one, environment) for one in command]
