"""What the client adds to a request: its calls against bare ones, at a server that answers at once.

    python -m benchmarks.client_overhead [--calls 400]

For each protocol a process of its own plays a server that reads a request and sends a fixed answer. The bare call
sends ready bytes over an open connection and reads bytes; the client's call makes the request, reads the answer into
its types, and keeps a deadline. The two take turns, and the differences of neighbours are what the client adds. (Caikit
over gRPC is not among them: the code is that of fmaas, after one look at the server's description of itself.)
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc

from llm_detox.bench.load import percentile
from llm_detox.client import AsyncTextGenerationClient, TextGenerationClient
from llm_detox.client.fmaas import messages, to_params
from llm_detox.client.types import Parameters

LIMIT_MS = 3.0
_TEXT, _GIVEN = "The best thing about my neighbours is that they " * 4, {"max_new_tokens": 24, "min_new_tokens": 24}
_SAID = " always bring fresh bread from the market" * 3
_CAIKIT = {"generated_text": _SAID, "generated_tokens": 24, "finish_reason": "MAX_TOKENS", "input_token_count": 40,
           "producer_id": {"name": "x", "version": "0"}, "seed": None}
_OPENAI = {"choices": [{"index": 0, "text": _SAID, "finish_reason": "length"}],
           "usage": {"prompt_tokens": 40, "completion_tokens": 24}}
_PATHS = {"rest": "/api/v1/task/text-generation", "openai": "/v1/completions"}


def serve_http(port: Any) -> None:
    """Answers every POST at once; runs in a process of its own."""
    answers = {_PATHS["rest"]: json.dumps(_CAIKIT).encode(), _PATHS["openai"]: json.dumps(_OPENAI).encode()}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            body = answers[self.path]
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    port.value = server.server_port
    server.serve_forever()


def serve_grpc(port: Any) -> None:
    """The same as fmaas."""
    answer = messages().BatchedGenerationResponse(responses=[{
        "text": _SAID, "generated_token_count": 24, "input_token_count": 40, "stop_reason": 1}]).SerializeToString()
    server = grpc.server(ThreadPoolExecutor(2))
    handler = grpc.unary_unary_rpc_method_handler(lambda request, context: answer)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(
        "fmaas.GenerationService", {"Generate": handler}),))
    port.value = server.add_insecure_port("127.0.0.1:0")
    server.start()
    server.wait_for_termination()


@contextmanager
def running(serve: Callable[[Any], None]) -> Iterator[int]:
    """The port of a server in a process of its own."""
    context = multiprocessing.get_context("spawn")
    port = context.Value("i", 0)
    process = context.Process(target=serve, args=(port,), daemon=True)
    process.start()
    try:
        while not port.value:
            if process.exitcode is not None:
                raise SystemExit("the server that answers at once ended")
            time.sleep(0.01)
        yield port.value
    finally:
        process.terminate()
        process.join()


def bare_http(port: int, path: str) -> Callable[[], object]:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    body = json.dumps({"model_id": "x", "inputs": _TEXT, "parameters": _GIVEN}).encode()

    def call() -> object:
        connection.request("POST", path, body, {"content-type": "application/json"})
        return connection.getresponse().read()

    return call


def bare_grpc(port: int) -> Callable[[], object]:
    kinds = messages()
    request = kinds.BatchedGenerationRequest(requests=[kinds.GenerationRequest(text=_TEXT)],
                                             params=to_params(Parameters.of(_GIVEN))).SerializeToString()
    call = grpc.insecure_channel(f"127.0.0.1:{port}").unary_unary("/fmaas.GenerationService/Generate")
    return lambda: call(request)


def compare(bare: Callable[[], object], url: str, calls: int) -> dict[str, dict[str, float]]:
    """Milliseconds that the client that blocks, and the one that is awaited, add to a bare call."""
    found = {}
    with TextGenerationClient(url, "x") as client:
        found["blocks"] = _difference(bare, lambda: client.generate(_TEXT, **_GIVEN), calls)

    async def awaited() -> dict[str, float]:
        async with AsyncTextGenerationClient(url, "x") as client:
            return await _awaited_difference(bare, client, calls)

    found["awaited"] = asyncio.run(awaited())
    return found


def _difference(bare: Callable[[], object], full: Callable[[], object], calls: int) -> dict[str, float]:
    pairs = []
    for number in range(calls + 20):
        times = [_timed(bare), _timed(full)]
        if number >= 20:  # the first ones open connections and fill caches
            pairs.append(times)
    return _summary(pairs)


async def _awaited_difference(bare: Callable[[], object], client: AsyncTextGenerationClient,
                              calls: int) -> dict[str, float]:
    pairs = []
    for number in range(calls + 20):
        short = _timed(bare)
        started = time.perf_counter()
        await client.generate(_TEXT, **_GIVEN)
        if number >= 20:
            pairs.append([short, time.perf_counter() - started])
    return _summary(pairs)


def _timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _summary(pairs: list[list[float]]) -> dict[str, float]:
    added = sorted(1000 * (full - bare) for bare, full in pairs)
    whole = sorted(1000 * full for _, full in pairs)
    return {"added_ms": statistics.median(added), "added_ms_p95": percentile(added, 95),
            "call_ms": statistics.median(whole), "call_ms_p99": percentile(whole, 99)}


def overhead(calls: int = 400) -> dict[str, dict[str, dict[str, float]]]:
    """Protocol -> blocks | awaited -> {"added_ms" (median), "added_ms_p95", "call_ms", "call_ms_p99"}."""
    with running(serve_grpc) as grpc_port, running(serve_http) as http_port:
        ways = {"fmaas": (bare_grpc(grpc_port), f"fmaas://127.0.0.1:{grpc_port}"),
                "rest": (bare_http(http_port, _PATHS["rest"]), f"http://127.0.0.1:{http_port}"),
                "openai": (bare_http(http_port, _PATHS["openai"]), f"openai+http://127.0.0.1:{http_port}")}
        return {name: compare(bare, url, calls) for name, (bare, url) in ways.items()}


def worst(found: dict[str, dict[str, dict[str, float]]]) -> float:
    return max(one["added_ms"] for ways in found.values() for one in ways.values())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=400)
    found = overhead(parser.parse_args().calls)
    print(json.dumps(found, indent=1))
    return 0 if worst(found) < LIMIT_MS else 1


if __name__ == "__main__":
    sys.exit(main())
