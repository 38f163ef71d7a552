"""A container's probes, asked as a kubelet asks them."""

from __future__ import annotations

import http.client
import os
import signal
import ssl
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from tests.standins import Unmeasured
from tests.standins.node.sandbox import Refused, Sandbox

Object = dict[str, Any]
Run = Callable[[list[str]], "subprocess.Popen[bytes]"]
_REST = 4.0  # an exec probe starts a program: between two, the cores get this many times what it took


@dataclass
class Probe:
    """One probe of a container that has been started.

    Args:
        kind: Startup, Readiness or Liveness.
        settings: as the container has them, with the API server's defaults.
        container: its specification, for the names of ports.
        sandbox: its pod's network.
        run: starts a program in the container.
        factor: periods and delays are divided by it.
        begin: when the container was started.
    """

    kind: str
    settings: Object
    container: Object
    sandbox: Sandbox
    run: Run
    factor: float
    begin: float
    passed: bool = False
    message: str = ""
    _failures: int = 0
    _successes: int = 0
    _next: float = field(init=False)

    def __post_init__(self) -> None:
        self._next = self.begin + self.settings.get("initialDelaySeconds", 0) / self.factor

    def ask(self, now: float) -> bool | None:
        """Ask if it is time; whether the answer was good, None where it was not asked."""
        if now < self._next:
            return None
        trouble = self._trouble()
        took = time.monotonic() - now
        pause = self.settings["periodSeconds"] / self.factor
        self._next = now + max(pause, took * _REST if "exec" in self.settings else took)
        self.message = "" if trouble is None else f"{self.kind} probe failed: {trouble}"
        self._count(trouble is None)
        return trouble is None

    @property
    def failed(self) -> bool:
        """Whether it has failed as often as is too often."""
        return self._failures >= self.settings["failureThreshold"]

    def _count(self, good: bool) -> None:
        self._failures, self._successes = (0, self._successes + 1) if good else (self._failures + 1, 0)
        if self._successes >= self.settings.get("successThreshold", 1):
            self.passed = True
        elif self.failed:
            self.passed = False

    def _trouble(self) -> str | None:
        timeout = float(self.settings["timeoutSeconds"])
        if "exec" in self.settings:
            return self._of_program(self.settings["exec"]["command"], timeout)
        try:
            if "httpGet" in self.settings:
                return self._of_http(self.settings["httpGet"], timeout)
            if "tcpSocket" in self.settings:
                self.sandbox.connect(self._port(self.settings["tcpSocket"]["port"]), timeout).close()
                return None
        except (Refused, OSError, http.client.HTTPException) as error:
            return f"Get: {error}" if "httpGet" in self.settings else str(error)
        raise Unmeasured(f"a probe with {', '.join(self.settings)}")

    def _of_http(self, wanted: Object, timeout: float) -> str | None:
        connection = http.client.HTTPConnection(self.sandbox.address, timeout=timeout)
        plain = self.sandbox.connect(self._port(wanted["port"]), timeout)
        with plain:
            connection.sock = _unchecked(plain) if wanted.get("scheme") == "HTTPS" else plain
            headers = {one["name"]: one["value"] for one in wanted.get("httpHeaders", ())}
            connection.request("GET", wanted.get("path", "/"), headers=headers)
            status = connection.getresponse().status
        return None if 200 <= status < 400 else f"HTTP probe failed with statuscode: {status}"

    def _of_program(self, command: list[str], timeout: float) -> str | None:
        process = self.run(command)
        try:
            output = process.communicate(timeout=timeout)[0].decode("utf-8", "replace").strip()
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            return f"command timed out: {' '.join(command)!r} timed out after {timeout:g}s"
        return None if process.returncode == 0 else output[-300:] or f"exit code {process.returncode}"

    def _port(self, port: int | str) -> int:
        if isinstance(port, int):
            return port
        for one in self.container.get("ports", ()):
            if one.get("name") == port:
                return int(one["containerPort"])
        raise Refused(f"couldn't find port: {port}")


def _unchecked(connection: Any) -> ssl.SSLSocket:
    """A kubelet checks no certificates."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context.wrap_socket(connection)
