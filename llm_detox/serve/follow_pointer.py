"""A model that is served from its pointer in S3 follows the pointer, without a request lost.

The new version is fetched and verified beside the old one, the link that the engine reads moves on to it, and the
engine is told to load anew. Requests that run end with the old model; where the new one does not load, the old one
stays.
"""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

from llm_detox import processes
from llm_detox.errors import DetoxError
from llm_detox.processes import Process
from llm_detox.progress import say
from llm_detox.storage import fetch_model
from llm_detox.storage.fetch import resolve
from llm_detox.storage.layout import Version

POLL_SECONDS = 5.0
LOAD_SECONDS = 1800.0
_MODEL, _FAILURES = "llm_detox_model{folder=", "llm_detox_reload_failures_total "


class Versions:
    """The fetched versions of one model, and the link `current` to the one that is served.

    Args:
        address: the place that the model was published to, or one version of it.
        folder: where the versions and the link lie.
    """

    def __init__(self, address: str, folder: Path) -> None:
        self.address, self._folder = address, folder
        self.current = folder / "model"
        self.digest = ""

    def fetch(self) -> Version:
        """Fetch what the address stands for now and point the link to it.

        Raises:
            DetoxError: it cannot be fetched; the link stays as it is.
        """
        version = resolve(self.address)
        fetch_model(version.address, self._folder / "versions" / version.digest)
        self.point(version.digest)
        return version

    def point(self, digest: str) -> None:
        """Move the link to a fetched version, in one step."""
        link = self.current.with_suffix(".new")
        link.unlink(missing_ok=True)
        link.symlink_to(Path("versions") / digest, target_is_directory=True)
        link.replace(self.current)
        self.digest = digest

    def remove_others(self) -> None:
        """Free the room of the versions that are not current."""
        for other in (self._folder / "versions").iterdir():
            if other.name != self.digest:
                shutil.rmtree(other, ignore_errors=True)


class Refresher(threading.Thread):
    """Looks for another version every few seconds, and brings it into service, until `over` is set.

    Args:
        versions: what is served, already fetched.
        engine: the process that loads the model anew on SIGUSR1.
        metrics: its address.
        on_change: called with a version when it is served.
        over: ends the work.
    """

    def __init__(self, versions: Versions, engine: Process, metrics: str, on_change: Callable[[Version], None],
                 over: threading.Event) -> None:
        super().__init__(name="refresh", daemon=True)
        self._versions, self._engine, self._metrics = versions, engine, metrics
        self._on_change, self._over = on_change, over
        self._refused = ""
        self._trouble = ""

    def run(self) -> None:
        while not self._over.wait(POLL_SECONDS):
            try:
                self._look()
                self._trouble = ""
            except Exception as error:  # the store may come back, and the model is served meanwhile
                trouble = str(error) if isinstance(error, DetoxError) else f"{type(error).__name__}: {error}"
                if trouble != self._trouble:
                    say(f"the model that is served stays: {trouble}")
                self._trouble = trouble

    def _look(self) -> None:
        before = self._versions.digest
        if resolve(self._versions.address).digest in (before, self._refused):
            return
        new = self._versions.fetch()
        say(f"{new.address} is the current version now; loading it")
        if self._loaded(new.digest):
            self._on_change(new)
            self._versions.remove_others()
            return
        if self._over.is_set():
            return
        self._refused = new.digest
        self._versions.point(before)
        self._versions.remove_others()
        raise DetoxError(f"the new version does not load:\n{processes.last_lines(self._engine.log, 3)}",
                         place=new.address, remedy="publish it again, or roll back: llm-detox models rollback")

    def _loaded(self, digest: str) -> bool:
        """Tell the engine to load anew, and wait for its word."""
        failures = self._sample(_FAILURES)
        os.kill(self._engine.pid, signal.SIGUSR1)
        deadline = time.monotonic() + LOAD_SECONDS
        while time.monotonic() < deadline and not self._over.is_set() and processes.is_running(self._engine):
            if digest in self._sample(_MODEL):
                return True
            if self._sample(_FAILURES) not in ("", failures):
                return False
            time.sleep(0.2)
        return False

    def _sample(self, start: str) -> str:
        """The engine's metric whose line begins so."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(self._metrics, timeout=30) as answer:
                lines = answer.read().decode().splitlines()
        except OSError:
            return ""
        return next((line for line in lines if line.startswith(start)), "")
