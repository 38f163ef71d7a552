"""Clients that are slow to talk, or do not listen, lose their connection and keep nobody else waiting."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from llm_detox.client import TextGenerationClient
from llm_detox.export import convert
from tests.serving.conftest import NAME
from tests.serving.engine.running import Engine, running_engine
from tests.serving.running import UNARY, running_caikit, wait_for

CLIENT_SECONDS = 3
MANY = 300
PATIENCE = 20.0
NLP = "/caikit.runtime.Nlp.NlpService"
LATER = CLIENT_SECONDS + 5


@dataclass(frozen=True)
class Served:
    """A runtime with little patience, in front of an engine."""

    rest: int
    grpc: int
    engine: Engine

    def client(self, protocol: str) -> TextGenerationClient:
        url = f"http://127.0.0.1:{self.rest}" if protocol == "rest" else f"grpc://127.0.0.1:{self.grpc}"
        return TextGenerationClient(url, NAME, timeout=PATIENCE, retries=0)

    def seconds(self, protocol: str) -> float:
        """How long an answer takes somebody who has a new connection."""
        started = time.monotonic()
        with self.client(protocol) as client:
            assert client.generate("the quick", max_new_tokens=1).generated_tokens == 1
        return time.monotonic() - started


@pytest.fixture(scope="module")
def served(engine_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("slow")
    convert(model=str(engine_model), output=root / "model")
    with running_engine(engine_model, "--client-seconds", str(CLIENT_SECONDS)) as engine, running_caikit(
            root / "model", root / "caikit.log", model_id=NAME, engine=f"127.0.0.1:{engine.grpc_port}",
            client_seconds=CLIENT_SECONDS) as (ports, _):
        running = Served(ports["rest"], ports["grpc"], engine)
        wait_for(lambda: _answers(running), 300, 0.5)
        yield running


def _answers(running: Served) -> bool:
    with contextlib.suppress(Exception):
        return running.seconds("rest") + running.seconds("grpc") > 0
    return False


class Silent:
    """The request of a call, which does not come."""

    def __init__(self) -> None:
        self.over = threading.Event()

    def __iter__(self) -> Silent:
        return self

    def __next__(self) -> bytes:
        self.over.wait()
        raise StopIteration


@contextlib.contextmanager
def _silent_calls(port: int, method: str, count: int) -> Iterator[list[Any]]:
    """Calls that send no request, each on a connection of its own."""
    silent = Silent()
    channels = [grpc.insecure_channel(f"127.0.0.1:{port}", [("grpc.use_local_subchannel_pool", 1)])
                for _ in range(count)]
    try:
        yield [channel.stream_stream(method)(silent, timeout=120) for channel in channels]
    finally:
        silent.over.set()
        for channel in channels:
            channel.close()


@pytest.mark.parametrize("method", [
    f"{NLP}/TextGenerationTaskPredict", f"{NLP}/ServerStreamingTextGenerationTaskPredict",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", "/grpc.health.v1.Health/Check"])
def test_calls_that_send_nothing_block_nobody(served: Served, method: str) -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with _silent_calls(served.grpc, method, MANY):
        time.sleep(0.5)
        with grpc.insecure_channel(f"127.0.0.1:{served.grpc}") as channel:  # what the readiness probe asks
            health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE)
        assert served.seconds("grpc") < 10
        assert served.seconds("rest") < 10


def test_a_call_that_sends_nothing_is_ended(served: Served) -> None:
    with _silent_calls(served.grpc, f"{NLP}/TextGenerationTaskPredict", 1) as [call]:
        started = time.monotonic()
        assert call.code() is grpc.StatusCode.CANCELLED
        assert CLIENT_SECONDS - 1 < time.monotonic() - started < LATER


def test_a_connection_has_a_bound_of_calls(served: Served) -> None:
    """HTTP/2's own word for it: setting 3 of the first frame that the server sends."""
    with socket.create_connection(("127.0.0.1", served.grpc), timeout=PATIENCE) as connection:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
        stream = connection.makefile("rb")
        head = stream.read(9)
        settings = dict(struct.iter_unpack(">HI", stream.read(int.from_bytes(head[:3]))))
    assert settings[3] == 128


def _post(served: Served, body: bytes, length: int | None = None) -> bytes:
    return (f"POST {UNARY} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body) if length is None else length}\r\n\r\n").encode() + body


def _trickling_head(served: Served) -> tuple[bytes, Callable[[int], bytes]]:
    return f"POST {UNARY} HTTP/1.1\r\nHost: x\r\n".encode(), lambda number: f"X-{number}: a\r\n".encode()


def _trickling_body(served: Served) -> tuple[bytes, Callable[[int], bytes]]:
    return _post(served, b"{", 10_000), lambda _: b" "


def _trickling_body_after_the_answer(served: Served) -> tuple[bytes, Callable[[int], bytes]]:
    return _post(served, b"", 10_000).replace(UNARY.encode(), b"/nothing"), lambda _: b" "


def _empty_lines(served: Served) -> tuple[bytes, Callable[[int], bytes]]:
    return b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n", lambda _: b"\r\n"


def _nothing(served: Served) -> tuple[bytes, Callable[[int], bytes]]:
    return b"", lambda _: b""


def _ended(connection: socket.socket) -> bool:
    """Whether the other side has closed it; what it says before is read."""
    connection.setblocking(False)
    try:
        while connection.recv(65536):
            pass
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


@pytest.mark.parametrize("trickle", [
    _trickling_head, _trickling_body, _trickling_body_after_the_answer, _empty_lines, _nothing])
@pytest.mark.parametrize("server", ["runtime", "engine"])
def test_what_trickles_over_http_is_ended(
    served: Served, server: str, trickle: Callable[[Served], tuple[bytes, Callable[[int], bytes]]]
) -> None:
    first, later = trickle(served)
    port = served.rest if server == "runtime" else served.engine.port
    connections = [socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) for _ in range(20)]
    try:
        for connection in connections:
            connection.sendall(first)
        deadline, number, left = time.monotonic() + 3 * CLIENT_SECONDS + 5, 0, list(connections)
        while left and time.monotonic() < deadline:
            time.sleep(0.2)
            number += 1
            left = [one for one in left if not _ended(one)]
            for connection in left:
                with contextlib.suppress(OSError):
                    connection.setblocking(True)
                    connection.sendall(later(number))
        assert left == []
    finally:
        for connection in connections:
            connection.close()


def test_a_body_that_does_not_come_is_told_so(served: Served) -> None:
    with socket.create_connection(("127.0.0.1", served.rest), timeout=PATIENCE) as connection:
        connection.sendall(_post(served, b"{", 100))
        assert connection.recv(1000).startswith(b"HTTP/1.1 408 ")


def test_a_head_without_end_is_refused(served: Served) -> None:
    with socket.create_connection(("127.0.0.1", served.rest), timeout=PATIENCE) as connection:
        with contextlib.suppress(OSError):
            connection.sendall(b"GET /health HTTP/1.1\r\nX: " + b"a" * 2**20)
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(1000).startswith(b"HTTP/1.1 400 ")


def test_answers_over_rest_that_nobody_reads_are_ended(served: Served) -> None:
    text = "word " * 1_800_000  # more than the system keeps for a reader
    body = json.dumps({"model_id": NAME, "inputs": text, "parameters": {
        "max_new_tokens": 1, "truncate_input_tokens": 8, "preserve_input_text": True}}).encode()
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(PATIENCE)
        connection.connect(("127.0.0.1", served.rest))
        connection.sendall(_post(served, body))
        start, size = connection.recv(100), 100
        assert start.startswith(b"HTTP/1.1 200 ")
        time.sleep(LATER)
        with contextlib.suppress(ConnectionResetError):
            while piece := connection.recv(2**20):
                size += len(piece)
    assert 100 < size < len(text)


def test_streams_over_grpc_that_nobody_reads_block_nobody(served: Served) -> None:
    """Each answer is larger than what is sent ahead of a reader."""
    with served.client("grpc") as client:
        client.generate("a", max_new_tokens=1)
        kind: Any = client._transport._methods["ServerStreamingTextGenerationTaskPredict"][1]  # type: ignore[attr-defined]
        message = kind(text="☕ " * 40_000, truncate_input_tokens=8, max_new_tokens=5,
                       preserve_input_text=True).SerializeToString()
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.http2.lookahead_bytes", 1024),
               ("grpc.http2.bdp_probe", 0)]
    channels = [grpc.insecure_channel(f"127.0.0.1:{served.grpc}", options) for _ in range(120)]
    try:
        calls = [channel.unary_stream(f"{NLP}/ServerStreamingTextGenerationTaskPredict")(
            message, timeout=120, metadata=[("mm-model-id", NAME)]) for channel in channels]
        time.sleep(LATER)
        with ThreadPoolExecutor(4) as pool:
            assert max(pool.map(lambda _: served.seconds("grpc"), range(8))) < 10
        del calls
    finally:
        for channel in channels:
            channel.close()

