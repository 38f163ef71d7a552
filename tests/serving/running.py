"""Caikit runtimes with options of a test's own, and what a client can see of a server."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from llm_detox import processes
from llm_detox.serve.local_stack import caikit_python

REPOSITORY = Path(__file__).parents[2]
UNARY, STREAM = "/api/v1/task/text-generation", "/api/v1/task/server-streaming-text-generation"


@contextmanager
def running_caikit(model: Path, log: Path, **options: object) -> Iterator[tuple[dict[str, int], int]]:
    """The Caikit runtime for a Caikit folder; yields its ports (rest, grpc, metrics) and its pid. It may still start.

    Args:
        model: what `convert` wrote.
        log: the file for its output.
        options: of `serving/caikit/runtime.py`.
    """
    rest, grpc_port, metrics = processes.free_ports(3)
    given = {"model_dir": model, "host": "127.0.0.1", "http_port": rest, "grpc_port": grpc_port,
             "metrics_port": metrics, "grace_seconds": 1, "work_dir": log.parent / "caikit", **options}
    command = [caikit_python(), str(REPOSITORY / "serving/caikit/runtime.py")]
    for name, value in given.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    with log.open("wb") as sink:
        process = subprocess.Popen(command, stdout=sink, stderr=sink)
    try:
        yield {"rest": rest, "grpc": grpc_port, "metrics": metrics}, process.pid
        assert process.poll() is None, processes.last_lines(log)
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def metrics_of(url: str) -> str:
    """The exposition of a server's metrics."""
    answer = httpx.get(f"{url}/metrics", timeout=30, trust_env=False)
    answer.raise_for_status()
    return answer.text


def total(exposed: str, name: str) -> float:
    """The sum of a metric over its labels."""
    return sum(float(line.split()[-1]) for line in exposed.splitlines() if line.startswith((f"{name}{{", f"{name} ")))


def wait_for(condition: Callable[[], Any], seconds: float = 60.0, every: float = 0.05) -> Any:
    """The first true value of the condition.

    Raises:
        AssertionError: it did not come in time.
    """
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come in time"
        time.sleep(every)
    return found
