"""`llm-detox serve` leaves nothing running, however it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from llm_detox import processes
from llm_detox.errors import DetoxError
from llm_detox.export import convert
from llm_detox.serve.local_stack import caikit_python
from tests.serving.running import wait_for


def _listens(url: str) -> bool:
    host, _, port = url.rpartition("//")[2].partition(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


def test_its_servers_end_with_it_even_where_it_is_killed(tiny_llama: Path, tmp_path: Path) -> None:
    try:
        caikit_python()
    except DetoxError as error:
        pytest.skip(str(error))
    convert(model=str(tiny_llama), output=tmp_path / "model")
    with (tmp_path / "log").open("wb") as sink:
        serving = subprocess.Popen(
            [sys.executable, "-m", "llm_detox.cli", "serve", str(tmp_path / "model"), "--json", "--rest-port", "0",
             "--grpc-port", "0"], env=dict(os.environ, TMPDIR=str(tmp_path)), stdout=subprocess.PIPE, stderr=sink,
            text=True)
    assert serving.stdout is not None
    urls = json.loads(serving.stdout.readline() or "{}")
    assert urls, (tmp_path / "log").read_text()
    [state] = tmp_path.glob("llm-detox-serve-*/deployment.json")
    ours = [processes.Process(**one) for one in json.loads(state.read_text())["processes"]]
    try:
        assert all(_listens(urls[name]) for name in ("rest", "grpc", "fmaas", "engine"))
        serving.send_signal(signal.SIGKILL)
        serving.wait(10)
        wait_for(lambda: not any(processes.is_running(one) for one in ours), 40)
        assert not any(_listens(urls[name]) for name in ("rest", "grpc", "fmaas", "engine"))
    finally:
        serving.kill()
        processes.stop_all(ours)
