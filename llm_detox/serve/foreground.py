"""Serving in the foreground: whatever names a model becomes the whole topology, until Ctrl-C."""

from __future__ import annotations

import signal
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from llm_detox import processes
from llm_detox.errors import DetoxError
from llm_detox.processes import Process
from llm_detox.progress import say
from llm_detox.serve.deployment import DeploymentState, note_version
from llm_detox.serve.follow_pointer import Refresher, Versions
from llm_detox.serve.local import serve_folder, stop_local
from llm_detox.serve.local_stack import Ports

_WATCH_SECONDS = 0.5
_ENDS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def serve(model: str, *, name: str, rest_port: int = 0, grpc_port: int = 0,
          on_ready: Callable[[DeploymentState], None] | None = None) -> None:
    """Serve a model until this process is told to end (SIGINT, SIGTERM, SIGHUP).

    Args:
        model: an address that `publish` printed (where it is that of the pointer, other versions are followed as it
            moves); a folder that `convert` or `deploy` wrote; or any other model source, which is converted first.
        name: the id under which the model answers.
        rest_port, grpc_port: wanted ports; 0 takes free ones.
        on_ready: called with the deployment's state when the model has answered.

    Raises:
        DetoxError: the model cannot be fetched or loaded, a port is in use, or a server process dies.
    """
    ports = Ports.choose(rest_port, grpc_port)
    ended, over = _EndSignal(), threading.Event()
    with tempfile.TemporaryDirectory(prefix="llm-detox-serve-", ignore_cleanup_errors=True) as folder, ended:
        work = Path(folder)
        try:
            versions = Versions(model, work) if model.startswith("s3://") else None
            version = versions.fetch() if versions else None
            state = serve_folder(
                versions.current if versions else _caikit_folder(model, work), name=name, ports=ports, output=work,
                address=version.address if version else None, digest=version.digest if version else None,
                lifeline=True)
            if on_ready:
                on_ready(state)
            if versions and state.address != model.rstrip("/"):
                Refresher(versions, state.processes[0], f"{state.urls['engine']}/metrics",
                          lambda new: note_version(work, address=new.address, digest=new.digest), over).start()
            _watch(state.processes, ended)
        except _Ended:
            say("ending")
        finally:
            over.set()
            stop_local(work)


def _caikit_folder(model: str, work: Path) -> Path:
    """The model as a Caikit folder: found, or converted."""
    for folder in (Path(model), Path(model) / "model"):
        if (folder / "config.yml").is_file() and (folder / "artifacts").is_dir():
            return folder
    from llm_detox.export import convert

    convert(model=model, output=work / "model")
    return work / "model"


def _watch(running: Sequence[Process], ended: _EndSignal) -> None:
    while not ended.seen:
        for process in running:
            if not processes.is_running(process):
                raise DetoxError(f"{process.name} died:\n{processes.last_lines(process.log)}", place=process.log,
                                 remedy="read its log above; most often memory ran out")
        time.sleep(_WATCH_SECONDS)


class _Ended(BaseException):
    """Somebody asked this process to end; not an `Exception`, so that nothing swallows it."""


class _EndSignal:
    """SIGTERM, SIGINT and the terminal's end end the block; also while the model is still loading."""

    def __init__(self) -> None:
        self.seen = False

    def __enter__(self) -> None:
        self._before = {number: signal.signal(number, self._note) for number in _ENDS}

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, *_: object) -> None:
        if not self.seen:  # a second Ctrl-C must not break the clean-up
            self.seen = True
            raise _Ended
