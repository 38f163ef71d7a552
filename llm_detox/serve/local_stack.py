"""The serving topology as processes on loopback: the TGIS-compatible engine, and the Caikit runtime in front of it."""

from __future__ import annotations

import importlib.util
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from llm_detox import processes
from llm_detox.client import GenerationError, TextGenerationClient
from llm_detox.errors import DetoxError
from llm_detox.generation.checks import check_model
from llm_detox.processes import Process
from llm_detox.progress import task

CAIKIT_PYTHON_VARIABLE = "LLM_DETOX_CAIKIT_PYTHON"
_LOCK = "requirements/caikit.txt"  # of a checkout
READY_SECONDS = 300.0
_PROBE = "Hello"
# What belongs to the store or to another server has no place in these processes.
_NOT_INHERITED = ("AWS_", "CAIKIT_", "RUNTIME_", "CONFIG_FILES", "MODEL_NAME", "TLS_")


@dataclass(frozen=True)
class Ports:
    """The ports of one deployment, all on 127.0.0.1."""

    rest: int
    grpc: int
    engine_grpc: int
    engine_http: int

    @classmethod
    def choose(cls, rest: int = 0, grpc: int = 0) -> Ports:
        """The wanted ports, and free ones where none (0) is wanted.

        Raises:
            DetoxError: a wanted port is in use.
        """
        if rest:
            processes.check_port(rest, "REST")
        if grpc:
            processes.check_port(grpc, "gRPC")
        free = [port for port in processes.free_ports(6) if port not in (rest, grpc)]
        return cls(rest or free[0], grpc or free[1], free[2], free[3])

    def urls(self) -> dict[str, str]:
        return {"rest": f"http://127.0.0.1:{self.rest}", "grpc": f"grpc://127.0.0.1:{self.grpc}",
                "fmaas": f"fmaas://127.0.0.1:{self.engine_grpc}", "engine": f"http://127.0.0.1:{self.engine_http}"}


def caikit_python() -> str:
    """The interpreter of the Caikit environment: $LLM_DETOX_CAIKIT_PYTHON, else `.venv-caikit` beside the library.

    Raises:
        DetoxError: it is not there.
    """
    given, root = os.environ.get(CAIKIT_PYTHON_VARIABLE), Path(__file__).parents[2]
    path = Path(given) if given else root / ".venv-caikit" / "bin" / "python"
    if not path.exists():
        makes = "`make install` makes it" if (root / _LOCK).exists() else (
            f"`make install` in a checkout of llm-detox makes it, and so does `pip install --no-deps --require-hashes "
            f"-r {_LOCK}` of the checkout in an environment of Python 3.11")
        raise DetoxError("the Caikit runtime's own environment is missing", place=str(path),
                         remedy=f"{makes}; or set {CAIKIT_PYTHON_VARIABLE} to its interpreter")
    return str(path)


def start(model: Path, name: str, ports: Ports, work: Path, *, lifeline: bool = False) -> list[Process]:
    """Start engine and runtime for a Caikit model folder, detached; they load at the same time.

    Args:
        model: what `convert` wrote.
        name: the id under which the model answers.
        ports: see `Ports.choose`.
        work: logs and configuration go here.
        lifeline: whether they end with this process, even where it is killed.

    Raises:
        DetoxError: the folder is no Caikit model, `check_model` refuses it, or a program is missing.
    """
    if not (model / "config.yml").is_file() or not (model / "artifacts").is_dir():
        raise DetoxError("this is not a Caikit model folder (config.yml and artifacts/)", place=str(model),
                         remedy="make one: llm-detox convert --model MODEL --output DIR")
    check_model(model / "artifacts")
    caikit, serving = caikit_python(), _serving_folder()
    work = work.absolute()
    bound = ["--end-with-stdin", "true"] if lifeline else []
    engine = processes.spawn("engine", [
        sys.executable, "-m", "serving.engine", "--model-name", str(model.absolute() / "artifacts"),
        "--host", "127.0.0.1", "--grpc-port", str(ports.engine_grpc), "--port", str(ports.engine_http), *bound,
    ], log=work / "engine.log", env=_environment(), cwd=serving.parent, lifeline=lifeline)
    try:
        runtime = processes.spawn("caikit", [
            caikit, str(serving / "caikit" / "runtime.py"), "--model-dir", str(model.absolute()), "--model-id", name,
            "--engine", f"127.0.0.1:{ports.engine_grpc}", "--host", "127.0.0.1", "--http-port", str(ports.rest),
            "--grpc-port", str(ports.grpc), "--metrics-port", "0", "--grace-seconds", "2",
            "--work-dir", str(work / "caikit"), *bound,
        ], log=work / "caikit.log", env=_environment(without=("PYTHONPATH", "PYTHONHOME")), lifeline=lifeline)
    except DetoxError:
        processes.stop(engine)
        raise
    return [engine, runtime]


def wait_until_ready(started: Sequence[Process], ports: Ports, name: str, timeout: float = READY_SECONDS) -> None:
    """Wait until a real generation has come back, over REST and over gRPC.

    Raises:
        DetoxError: a process ended, or the time is over; with the end of the log.
    """
    urls = ports.urls()
    deadline = time.monotonic() + timeout
    with task("starting the model server", 4, "parts") as work:
        for ready in (lambda: _is_healthy(f"{urls['engine']}/health"), lambda: _is_healthy(f"{urls['rest']}/health"),
                      lambda: _answers(urls["rest"], name), lambda: _answers(urls["grpc"], name)):
            _wait_for(ready, started, deadline)
            work.advance()


def _wait_for(ready: Callable[[], bool], started: Sequence[Process], deadline: float) -> None:
    while True:
        for process in started:
            if not processes.is_running(process):
                raise _failed(process, "ended while starting")
        if ready():
            return
        if time.monotonic() > deadline:
            raise _failed(started[-1], "did not get ready in time")
        time.sleep(0.1)


def _failed(process: Process, what: str) -> DetoxError:
    return DetoxError(f"{process.name} {what}:\n{processes.last_lines(process.log)}", place=process.log,
                      remedy="read the log; check memory, and that the model folder is whole")


def _is_healthy(url: str) -> bool:
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _answers(url: str, name: str) -> bool:
    with TextGenerationClient(url, name, timeout=60, retries=0) as client:
        try:
            return client.generate(_PROBE, max_new_tokens=1).generated_tokens == 1
        except GenerationError as error:
            # Not connected yet, or the engine is still loading the model: the deadline decides.
            if error.code not in ("UNAVAILABLE", "NOT_FOUND", "DEADLINE_EXCEEDED"):
                raise
            return False


def _environment(without: Sequence[str] = ()) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items()
            if key not in without and not key.startswith(_NOT_INHERITED)}
    return {**kept, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def _serving_folder() -> Path:
    package = importlib.util.find_spec("serving")
    folders = list(package.submodule_search_locations or ()) if package else []
    if not folders:
        raise DetoxError("the package `serving` is not installed", remedy="pip install -e . in the checkout")
    return Path(folders[0])
