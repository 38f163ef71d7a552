"""Half an hour of mixed requests, cancelled calls and restarts: no wrong answer, no leak, clear failures only.

`LLM_DETOX_SOAK_SECONDS` shortens it, `LLM_DETOX_SOAK_MODEL` names another model folder than the tiny one.
"""

from __future__ import annotations

import collections
import itertools
import os
import random
import threading
import time
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.serving.engine.running import SERVICE, Engine, free_port, pb, running_engine

SECONDS = float(os.environ.get("LLM_DETOX_SOAK_SECONDS", "1800"))
CLIENTS = 32
RESTARTS = 2
TEXTS = ["you are", "the quick brown fox jumps", "a fine day for a walk in the park with my friends", "☕ 日本語", "x",
         "thank you for the lovely dinner", "the train to the city leaves at noon and arrives " * 2, "shut up"]
INTERRUPTED = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNKNOWN, grpc.StatusCode.CANCELLED}


class Client(threading.Thread):
    """One client that asks, streams, cancels and checks until told to stop."""

    def __init__(self, number: int, port: int, expected: dict[tuple[str, int], str], stop: threading.Event,
                 restarting: threading.Event) -> None:
        super().__init__(daemon=True)
        self.chance, self.expected, self.stop, self.restarting = random.Random(number), expected, stop, restarting
        self.channel = grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.max_reconnect_backoff_ms", 500)])
        self.counts: collections.Counter[str] = collections.Counter()
        self.wrong: list[str] = []

    def run(self) -> None:
        while not self.stop.is_set():
            text, length = self.chance.choice(list(self.expected))
            quiet = not self.restarting.is_set()
            try:
                self._ask(text, length)
            except grpc.RpcError as error:
                if error.code() in INTERRUPTED and not (quiet and not self.restarting.is_set()):
                    self.counts["interrupted"] += 1
                    time.sleep(0.1)
                else:
                    self.wrong.append(f"{error.code()}: {error.details()}")

    def _ask(self, text: str, length: int) -> None:
        params: Any = {"stopping": {"max_new_tokens": length, "min_new_tokens": length}}
        stream = self.channel.unary_stream(
            f"{SERVICE}/GenerateStream", request_serializer=pb.SingleGenerationRequest.SerializeToString,
            response_deserializer=pb.GenerationResponse.FromString)
        unary = self.channel.unary_unary(
            f"{SERVICE}/Generate", request_serializer=pb.BatchedGenerationRequest.SerializeToString,
            response_deserializer=pb.BatchedGenerationResponse.FromString)
        way = self.chance.random()
        if way < 0.15:
            call = stream(pb.SingleGenerationRequest(request={"text": text}, params=params), timeout=120)
            for _ in itertools.islice(call, self.chance.randint(1, 4)):
                pass
            call.cancel()
            self.counts["cancelled"] += 1
            return
        if way < 0.55:
            call = stream(pb.SingleGenerationRequest(request={"text": text}, params=params), timeout=120)
            found = "".join(message.text for message in call)
        else:
            request = pb.BatchedGenerationRequest(requests=[{"text": text}], params=params)
            found = unary(request, timeout=120).responses[0].text
        self.counts["answered"] += 1
        if found != self.expected[text, length]:
            self.wrong.append(f"{text!r} at {length}: {found!r}")


def _resident_kib(engine: Engine) -> int:
    status = Path(f"/proc/{engine.process.pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])


def _answer(engine: Engine, text: str, length: int) -> str:
    [answer] = engine.generate(text, stopping={"max_new_tokens": length, "min_new_tokens": length})
    return str(answer.text)


def _watch(engine: Engine, seconds: float) -> list[int]:
    """The engine's memory in KiB, every second or so."""
    seen, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        assert engine.process.poll() is None, engine.log.read_text()
        seen.append(_resident_kib(engine))
        time.sleep(min(1.0, max(0.0, end - time.monotonic())))
    return seen


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_soak(tiny_llama: Path) -> None:
    model = Path(os.environ.get("LLM_DETOX_SOAK_MODEL", tiny_llama))
    port, stop, restarting = free_port(), threading.Event(), threading.Event()
    arguments = ("--max-batch-size", "16", "--grpc-port", str(port), "--shutdown-grace-seconds", "1")
    clients: list[Client] = []
    memory: list[list[int]] = []
    for _ in range(RESTARTS + 1):
        with running_engine(model, *arguments) as engine:
            if not clients:
                expected = {(text, length): _answer(engine, text, length) for text in TEXTS for length in (4, 40)}
                clients = [Client(number, port, expected, stop, restarting) for number in range(CLIENTS)]
                for client in clients:
                    client.start()
            time.sleep(2)  # channels reconnect
            restarting.clear()
            memory.append(_watch(engine, SECONDS / (RESTARTS + 1)))
            restarting.set()
            assert engine.terminate() == 0
    stop.set()
    for client in clients:
        client.join(130)
    counts = sum((client.counts for client in clients), collections.Counter[str]())
    print(dict(counts), "MiB at the start and the end of each run:",
          [(run[len(run) // 3] // 1024, run[-1] // 1024) for run in memory])
    assert [trouble for client in clients for trouble in client.wrong] == []
    assert counts["answered"] > 10 * CLIENTS
    assert counts["cancelled"] > CLIENTS
    assert counts["interrupted"] < 50 * CLIENTS
    for run in memory:  # past the first third, when caches are filled
        assert max(run[len(run) // 3 :]) < 1.1 * run[len(run) // 3] + 20 * 1024
