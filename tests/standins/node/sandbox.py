"""A pod's network: a namespace with an address of its own, into which this machine gets only through a socket."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

_PAUSE = Path(__file__).with_name("pause.py")
_TRIAL = "mount -t tmpfs t /mnt && mkdir /mnt/u /mnt/w /mnt/r && mount -t overlay o -o " \
         "lowerdir=/,upperdir=/mnt/u,workdir=/mnt/w /mnt/r"


@lru_cache
def missing() -> str | None:
    """Why no pods can be run here; None where they can."""
    if os.geteuid() != 0:
        return "pods need root for their namespaces"
    for program in ("ip", "nsenter", "setpriv", "unshare"):
        if not shutil.which(program):
            return f"pods need the program {program}"
    trial = subprocess.run(["unshare", "--mount", "--net", "--pid", "--fork", "sh", "-c", _TRIAL], capture_output=True,
                           text=True, timeout=60)
    return f"namespaces and overlays are not permitted here: {trial.stderr.strip()}" if trial.returncode else None


class Refused(Exception):
    """Nothing listens there; in the words of a dialler."""


class Sandbox:
    """The network of one pod.

    Args:
        folder: for the socket, of a short name: a socket's path has 107 letters at most.
        address: the pod's own.
    """

    def __init__(self, folder: Path, address: str) -> None:
        self.address, self._socket = address, folder / "net"
        self._process = subprocess.Popen(
            ["unshare", "--net", sys.executable, "-S", "-E", str(_PAUSE), str(self._socket), address],
            stdin=subprocess.PIPE, start_new_session=True)

    @property
    def pid(self) -> int:
        """A process in the network's namespace."""
        return self._process.pid

    @property
    def is_up(self) -> bool:
        """Whether it takes connections."""
        return self._socket.exists()

    def connect(self, port: int, seconds: float | None = None) -> socket.socket:
        """A connection to a port of the pod's address.

        Raises:
            Refused: nothing listens there.
        """
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(seconds)
        try:
            connection.connect(str(self._socket))
            connection.sendall(f"{port}\n".encode())
            answer = b""
            while not answer.endswith(b"\n"):
                part = connection.recv(1)
                if not part:
                    raise Refused(f"dial tcp {self.address}:{port}: the pod is gone")
                answer += part
            if answer != b"ok\n":
                raise Refused(answer.decode().strip())
        except BaseException as error:
            connection.close()
            if isinstance(error, OSError):
                raise Refused(f"dial tcp {self.address}:{port}: {error}") from None
            raise
        return connection

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        if self._process.stdin:
            self._process.stdin.close()
