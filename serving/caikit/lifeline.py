"""A process that ends with the one that started it, even where that one is killed."""

from __future__ import annotations

import os
import signal
import threading


def end_with_stdin() -> None:
    """Send this process SIGTERM when its standard input ends: a pipe whose other end only the starter holds."""
    threading.Thread(target=_wait, name="lifeline", daemon=True).start()


def _wait() -> None:
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
