"""How fast the served model is, and what each part of the way costs; all in one run, on the same model and requests.

    python -m benchmarks.serve_speed --model SOURCE [--vllm-python PYTHON] [--output FILE.json]

- throughput: one request after the other with `generate`, static batches with `generate`, the engine with so many
  requests in flight, and the same through Caikit over gRPC and REST;
- hop: a request of one token, alone, to the engine and through Caikit: what the hop adds to a request;
- overhead: what this project's client adds to a bare call (`benchmarks.client_overhead`);
- vllm: the engine with vLLM behind it against vLLM's own OpenAI server, with the same settings, where --vllm-python
  names the interpreter of an environment that has vLLM (and grpcio, grpcio-tools, grpcio-reflection,
  grpcio-health-checking, caikit-tgis-backend, prometheus-client, pydantic, PyYAML, rich, typer).

What is compared takes turns in every round, so that a busy machine disturbs all alike; medians are compared. Requests
are greedy, of 4 to 40 words, and outputs of `--tokens` differ by `--spread` of it, as requests do. Exit code 1 where a
bound is missed: the engine at 4 times one-at-a-time and not under static batches, vLLM's back end at 0.95 of its own
server, the client under 3 ms.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.client_overhead import LIMIT_MS, overhead, worst
from benchmarks.serving_ways import Plain, Request, caikit_folder, requests, topology, vllm
from llm_detox.progress import say

Way = Callable[[], int]
TIMES_ONE_BY_ONE, TIMES_STATIC, TIMES_VLLM = 4.0, 1.0, 0.95


def rates(ways: Mapping[str, Way], rounds: int) -> dict[str, Any]:
    """Tokens a second of each way, round by round, and their medians. The ways take turns."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        for name, run in ways.items():
            started = time.perf_counter()
            found[name].append(run() / (time.perf_counter() - started))
        say(f"round {number + 1}: " + ", ".join(f"{name} {values[-1]:.1f}" for name, values in found.items()))
    return {"tokens_per_second": {name: statistics.median(values) for name, values in found.items()}, "rounds": found}


def throughput(model: Path, served: Mapping[str, Any], work: list[Request], size: int, rounds: int) -> dict[str, Any]:
    plain = Plain(model / "artifacts")
    few = work[::max(1, len(work) // 8)]  # one at a time takes long, and its rate depends little on how many there are
    ways: dict[str, Way] = {"one_by_one": lambda: plain.one_by_one(few),
                            "static_batches": lambda: plain.batches(work, size)}
    for name, one in served.items():
        ways[name] = lambda one=one: one.concurrent(work, size)  # type: ignore[misc]
    plain.run(work[:2])  # first calls set up threads and caches
    for one in served.values():
        one.concurrent(work[:size], size)
    result = rates(ways, rounds)
    median = result["tokens_per_second"]
    return {**result, "engine_by_one_by_one": median["engine"] / median["one_by_one"],
            "engine_by_static_batches": median["engine"] / median["static_batches"],
            "caikit_grpc_by_engine": median["caikit_grpc"] / median["engine"],
            "caikit_rest_by_engine": median["caikit_rest"] / median["engine"]}


def hop(served: Mapping[str, Any], calls: int) -> dict[str, float]:
    """Milliseconds of a request of one token, and what Caikit adds to it: medians of neighbours' differences."""
    request = Request(requests(1, 1, 0)[0].text, 1)
    times: dict[str, list[float]] = {name: [] for name in served}
    for _ in range(calls):
        for name, one in served.items():
            started = time.perf_counter()
            one.one(request)
            times[name].append(1000 * (time.perf_counter() - started))
    added = {f"{name}_adds_ms": statistics.median(b - a for a, b in zip(times["engine"], values, strict=True))
             for name, values in times.items() if name != "engine"}
    return {**{f"{name}_ms": statistics.median(values) for name, values in times.items()}, **added}


def against_vllm(python: str, model: Path, work: list[Request], size: int, rounds: int, logs: Path) -> dict[str, Any]:
    import torch

    with vllm(python, model, size, torch.cuda.is_available(), logs) as served:
        for one in served.values():
            one.concurrent(work[:size], size)
        ways = {name: (lambda one=one: one.concurrent(work, size)) for name, one in served.items()}
        result = rates(ways, rounds)
    median = result["tokens_per_second"]
    return {**result, "engine_by_openai": median["vllm_engine"] / median["vllm_openai"]}


def missed(result: Mapping[str, Any]) -> list[str]:
    """The bounds that the run did not keep."""
    bounds = [("engine by one-at-a-time", result["throughput"]["engine_by_one_by_one"], TIMES_ONE_BY_ONE),
              ("engine by static batches", result["throughput"]["engine_by_static_batches"], TIMES_STATIC)]
    if "vllm" in result:
        bounds.append(("vLLM's back end by its own server", result["vllm"]["engine_by_openai"], TIMES_VLLM))
    missing = [f"{name}: {value:.2f}, at least {least} is wanted" for name, value, least in bounds if value < least]
    if (added := worst(result["overhead"])) >= LIMIT_MS:
        missing.append(f"the client adds {added:.2f} ms, under {LIMIT_MS:g} is wanted")
    return missing


def measure(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    model = caikit_folder(options.model, work)
    asked = requests(options.requests, options.tokens, options.spread)
    result: dict[str, Any] = {"settings": {name: str(value) for name, value in vars(options).items()},
                              "cores": os.cpu_count(), "seconds": {}}

    @contextmanager
    def clock(name: str) -> Any:
        say(f"{name} ...")
        started = time.perf_counter()
        yield
        result["seconds"][name] = round(time.perf_counter() - started, 1)

    with topology(model, work / "logs") as served:
        with clock("throughput"):
            result["throughput"] = throughput(model, served, asked, options.concurrency, options.rounds)
        with clock("hop"):
            result["hop"] = hop(served, options.hops)
    with clock("overhead"):
        result["overhead"] = overhead()
    if options.vllm_python:
        with clock("vllm"):
            result["vllm"] = against_vllm(options.vllm_python, model, asked, options.concurrency, options.rounds, work)
    return {**result, "missed": missed(result)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="any model source, or a folder that `convert` wrote")
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--spread", type=float, default=0.5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--hops", type=int, default=40, help="requests of one token on each way")
    parser.add_argument("--vllm-python", help="interpreter of an environment with vLLM")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="serve-speed-") as folder:
        result = measure(options, Path(folder))
    print(json.dumps(result, indent=1))
    if options.output:
        options.output.write_text(json.dumps(result, indent=1), "utf-8")
    for one in result["missed"]:
        say(f"missed: {one}")
    return 1 if result["missed"] else 0


if __name__ == "__main__":
    sys.exit(main())
