"""A running engine for tests, and the calls that they make of it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from serving.engine import proto

pb = proto.messages()
SERVICE = f"/{proto.SERVICE}"
PROMPT = "the quick brown"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Engine:
    """One engine process with a channel to it."""

    def __init__(self, process: subprocess.Popen[bytes], grpc_port: int, port: int, log: Path,
                 channel: grpc.Channel) -> None:
        self.process, self.grpc_port, self.port, self.log, self.channel = process, grpc_port, port, log, channel

    def call(self, method: str, request: Any, answer: Any, **options: Any) -> Any:
        return self.channel.unary_unary(f"{SERVICE}/{method}", request_serializer=type(request).SerializeToString,
                                        response_deserializer=answer.FromString)(request, timeout=60, **options)

    def generate(self, *texts: str, **params: Any) -> Any:
        request = pb.BatchedGenerationRequest(requests=[{"text": text} for text in texts], params=params)
        return self.call("Generate", request, pb.BatchedGenerationResponse).responses

    def start_stream(self, text: str, **params: Any) -> Any:
        call = self.channel.unary_stream(f"{SERVICE}/GenerateStream",
                                         request_serializer=pb.SingleGenerationRequest.SerializeToString,
                                         response_deserializer=pb.GenerationResponse.FromString)
        return call(pb.SingleGenerationRequest(request={"text": text}, params=params), timeout=60)

    def stream(self, text: str, **params: Any) -> list[Any]:
        return list(self.start_stream(text, **params))

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=30) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def metric(self, line: str) -> float:
        """The value of the sample that begins with `line`."""
        found = [text for text in self.get("/metrics")[1].splitlines() if text.startswith(line + " ")]
        return float(found[0].split()[-1]) if found else 0.0

    def terminate(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGABRT)  # the fault handler writes where each thread stands
            self.process.wait(10)
            raise AssertionError(f"the engine did not end:\n{self.log.read_text()[-20000:]}") from None


def engine_command(model: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-X", "faulthandler", "-m", "serving.engine", "--model-name", str(model),
            "--host", "127.0.0.1", "--threads", "1", *arguments]


@contextmanager
def running_engine(model: Path, *arguments: str, credentials: Any = None) -> Iterator[Engine]:
    """An engine on free ports, ready, ended on leaving."""
    port, chosen = free_port(), "--grpc-port" in arguments
    grpc_port = int(arguments[arguments.index("--grpc-port") + 1]) if chosen else free_port()
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "engine.log"
        with log.open("wb") as sink:
            process = subprocess.Popen(
                engine_command(model, *arguments, "--grpc-port", str(grpc_port), "--port", str(port)),
                stderr=sink, stdout=sink, env=dict(os.environ, OMP_NUM_THREADS="1"))
        target = f"localhost:{grpc_port}"
        channel = grpc.insecure_channel(target) if credentials is None else grpc.secure_channel(target, credentials)
        engine = Engine(process, grpc_port, port, log, channel)
        try:
            _wait_until_ready(engine)
            yield engine
        finally:
            channel.close()
            if process.poll() is None:
                process.kill()
                process.wait()


def _wait_until_ready(engine: Engine) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        if engine.process.poll() is not None:
            break
        try:
            if engine.get("/health")[0] == 200:
                return
        except OSError:
            pass
        time.sleep(0.1)
    raise AssertionError(f"the engine did not get ready:\n{engine.log.read_text()}")


def refused(call: Any, code: grpc.StatusCode = grpc.StatusCode.INVALID_ARGUMENT) -> str:
    """The details with which the call fails; the code must be this one."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    assert caught.value.code() == code
    return str(caught.value.details())
