"""Throughput of the engine against plain `generate`, same model and requests, in one run.

    python -m benchmarks.serve_speed --model FOLDER [--concurrency 16] [--requests 32] [--rounds 3] [--output FILE.json]

Three ways take turns in every round, so that a busy machine disturbs all of them alike; the medians are compared:
one request after the other with `generate`, static batches with `generate`, and the engine over gRPC with so many
requests in flight. Requests are greedy, of mixed input lengths; `--spread 0` makes all outputs equally long, else
they differ, as requests do. Exit code 1 where the engine is under 4 times one-at-a-time or under static batches.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from llm_detox.progress import say
from serving.engine import proto

TEXT = ("the best thing about my neighbours is that they always bring fresh bread from market when it rains and "
        "children sing old songs while we talk about work weather music travel books and many other things")


@dataclass(frozen=True)
class Request:
    text: str
    tokens: int


def requests(count: int, tokens: int, spread: float, seed: int = 1) -> list[Request]:
    """So many requests of 4 to 40 words; outputs differ from `tokens` by up to `spread` of it."""
    chance, words = random.Random(seed), TEXT.split()  # noqa: S311
    return [Request(" ".join(chance.choices(words, k=chance.randint(4, 40))),
                    max(1, round(tokens * (1 + chance.uniform(-spread, spread))))) for _ in range(count)]


class Plain:
    """`generate` of transformers."""

    def __init__(self, model: Path) -> None:
        from llm_detox.generation.models import load_model, load_tokenizer

        self.model: Any = load_model(model)
        self.tokenizer = load_tokenizer(model)

    def run(self, batch: list[Request]) -> int:
        import torch

        encoded = self.tokenizer([request.text for request in batch], return_tensors="pt", padding=True)
        most = max(request.tokens for request in batch)
        with torch.inference_mode():
            self.model.generate(**encoded.to(self.model.device), max_new_tokens=most, min_new_tokens=most,
                                do_sample=False)
        return sum(request.tokens for request in batch)  # what was asked for; the rest of the batch's steps is waste

    def one_by_one(self, work: list[Request], size: int) -> int:
        return sum(self.run([request]) for request in work)

    def batches(self, work: list[Request], size: int) -> int:
        return sum(self.run(work[i : i + size]) for i in range(0, len(work), size))


class Served:
    """The engine over gRPC."""

    def __init__(self, port: int) -> None:
        pb = proto.messages()
        self.channel = grpc.insecure_channel(f"127.0.0.1:{port}")
        self.call = self.channel.unary_unary(
            f"/{proto.SERVICE}/Generate", request_serializer=pb.BatchedGenerationRequest.SerializeToString,
            response_deserializer=pb.BatchedGenerationResponse.FromString)
        self.request = pb.BatchedGenerationRequest

    def one(self, request: Request) -> int:
        stopping = {"max_new_tokens": request.tokens, "min_new_tokens": request.tokens}
        answer = self.call(self.request(requests=[{"text": request.text}], params={"stopping": stopping}), timeout=600)
        return int(answer.responses[0].generated_token_count)

    def concurrent(self, work: list[Request], size: int) -> int:
        with ThreadPoolExecutor(size) as pool:
            return sum(pool.map(self.one, work))


@contextmanager
def engine(model: Path, size: int) -> Iterator[Served]:
    """An engine process on free ports."""
    ports = [_free_port(), _free_port()]
    command = [sys.executable, "-m", "serving.engine", "--model-name", str(model), "--host", "127.0.0.1",
               "--grpc-port", str(ports[0]), "--port", str(ports[1]), "--max-batch-size", str(size)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        _wait(f"http://127.0.0.1:{ports[1]}/health", process)
        yield Served(ports[0])
    finally:
        process.terminate()
        process.wait(60)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(url: str, process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=60):  # noqa: S310 (our own loopback address)
                return
        except OSError:
            time.sleep(0.2)
    raise SystemExit("the engine ended before it was ready")


def measure(model: Path, work: list[Request], size: int, rounds: int) -> dict[str, list[float]]:
    """Tokens a second of the three ways, round by round."""
    plain = Plain(model)
    with engine(model, size) as served:
        ways: dict[str, tuple[Callable[[list[Request], int], int], list[Request]]] = {
            "one_by_one": (plain.one_by_one, work[: max(4, len(work) // 8)]),
            "static_batches": (plain.batches, work), "engine": (served.concurrent, work)}
        for run, _ in ways.values():
            run(work[:2], 2)  # first calls set up threads and caches
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(rounds):
            for name, (run, share) in ways.items():
                started = time.perf_counter()
                rates[name].append(run(share, size) / (time.perf_counter() - started))
            say(f"round {number + 1}: " + ", ".join(f"{name} {values[-1]:.1f}" for name, values in rates.items()))
    return rates


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--spread", type=float, default=0.5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    work = requests(options.requests, options.tokens, options.spread)
    rates = measure(options.model, work, options.concurrency, options.rounds)
    median = {name: statistics.median(values) for name, values in rates.items()}
    result = {"tokens_per_second": median, "rounds": rates, "cores": os.cpu_count(),
              "times_one_by_one": median["engine"] / median["one_by_one"],
              "times_static_batches": median["engine"] / median["static_batches"],
              "settings": {k: str(v) for k, v in vars(options).items()}}
    print(json.dumps(result, indent=1))
    if options.output:
        options.output.write_text(json.dumps(result), "utf-8")
    return 0 if result["times_one_by_one"] >= 4 and result["times_static_batches"] >= 1 else 1


if __name__ == "__main__":
    sys.exit(main())
