"""What judging costs: answers without a guard, with one in the client, and with one behind an InferenceGraph.

    python -m benchmarks.guard_speed --model SOURCE [--guard bilstm] [--in-flight 8] [--output FILE.json]

The model is served by the whole topology, and asked for whole answers over REST, one at a time and with so many in
flight. The graph's router is played here as KServe's works (a Sequence of two POSTs, each read to its end); it is
written in Python, so that its part of the cost is an upper bound.
"""

from __future__ import annotations

import argparse
import functools
import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks.client_overhead import running
from benchmarks.serving_ways import NAME, caikit_folder, is_healthy, topology
from llm_detox import processes
from llm_detox.bench.load import Load, bench, distribution, mixed_prompts
from llm_detox.client import TextGenerationClient
from llm_detox.guard.build import open_guard
from llm_detox.guard.filter import Guard, Guarded, GuardedClient
from llm_detox.progress import say
from llm_detox.runs.artifacts import plain


def route(steps: list[str], port: Any) -> None:
    """A Sequence whose second step gets the answer of the first; runs in a process of its own."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            status, body = 200, self.rfile.read(int(self.headers["content-length"]))
            for url in steps:
                status, body = _post(url, body)
                if status != 200:
                    break
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 128

    server = Server(("127.0.0.1", 0), Handler)
    port.value = server.server_port
    server.serve_forever()


_open = threading.local()


def _post(url: str, body: bytes) -> tuple[int, bytes]:
    parts = urlsplit(url)
    connections: dict[str, http.client.HTTPConnection] = _open.__dict__
    connection = connections.setdefault(parts.netloc, http.client.HTTPConnection(parts.netloc))
    connection.request("POST", parts.path, body, {"content-type": "application/json"})
    answer = connection.getresponse()
    return answer.status, answer.read()


@contextmanager
def guard_process(kind: str, threshold: float, log: Path) -> Iterator[str]:
    """The guard's program; yields its address."""
    port = processes.free_ports(1)[0]
    url = f"http://127.0.0.1:{port}"
    with log.open("wb") as output:
        process = subprocess.Popen([sys.executable, "-m", "serving.guard", "--guard", kind, "--threshold",
                                    str(threshold), "--port", str(port)], stdout=output, stderr=output)
    try:
        while not is_healthy(f"{url}/health"):
            if process.poll() is not None:
                raise SystemExit(f"the guard ended:\n{processes.last_lines(log)}")
            time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait(30)


def alone(clients: dict[str, Any], prompts: list[str], given: dict[str, Any]) -> dict[str, Any]:
    """Milliseconds of one answer at a time; the ways take turns on each prompt, and each is first as often as the rest.

    What a way adds is the median of the differences of neighbours, not the difference of medians.
    """
    times: dict[str, list[float]] = {name: [] for name in clients}
    judging = []
    for number, prompt in enumerate(prompts):
        names = list(clients)
        for name in names[number % len(names):] + names[:number % len(names)]:
            started = time.perf_counter()
            answer = clients[name].generate(prompt, **given)
            times[name].append(1000 * (time.perf_counter() - started))
            if isinstance(answer, Guarded):
                judging.append(answer.verdict.seconds)
    added = {name: statistics.median(b - a for a, b in zip(times["plain"], values, strict=True))
             for name, values in times.items() if name != "plain"}
    return {"answer_ms": {name: statistics.median(values) for name, values in times.items()}, "adds_ms": added,
            "judging_ms": plain(distribution(judging))}


def together(urls: dict[str, str], load: Load, guard: Guard, rounds: int) -> dict[str, Any]:
    """Tokens a second with so many answers in flight: medians of rounds in which the ways take turns."""
    rates: dict[str, list[float]] = {}
    for number in range(rounds):
        rows = [*bench({"url": urls["plain"], "model_id": NAME}, load, guard).levels,
                *(replace(row, way="graph") for row in bench({"url": urls["graph"], "model_id": NAME}, load).levels)]
        for row in rows:
            if row.errors:
                raise SystemExit(f"answers failed: {row.errors}")
            rates.setdefault(row.way, []).append(row.tokens_per_second)
        say(f"round {number + 1} of {rounds} done")
    return {"in_flight": load.levels[0], "rounds": rates,
            "tokens_per_second": {way: statistics.median(values) for way, values in rates.items()}}


def measure(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    given = {"max_new_tokens": options.tokens, "min_new_tokens": options.tokens, "decoding_method": "GREEDY"}
    guard, prompts = open_guard(options.guard, options.threshold), mixed_prompts(options.requests)
    with (topology(caikit_folder(options.model, work), work / "logs") as served,
          guard_process(options.guard, options.threshold, work / "guard.log") as judge):
        model = served["caikit_rest"].client.server.url
        steps = [f"{model}/api/v1/task/text-generation", f"{judge}/guard"]
        with (running(functools.partial(route, steps)) as port,
              TextGenerationClient(f"http://127.0.0.1:{port}", NAME, timeout=600) as graph):
            plain = served["caikit_rest"].client
            clients = {"plain": plain, "client": GuardedClient(plain, guard), "graph": graph}
            for client in clients.values():
                client.generate(prompts[0], **given)  # the first ones open connections
            say("one answer at a time ...")
            found = alone(clients, prompts, given)
            load = Load([options.in_flight], options.requests, given, prompts, streams=False)
            loaded = together({"plain": model, "graph": graph.server.url}, load, guard, options.rounds)
    return {"settings": {name: str(value) for name, value in vars(options).items()}, "cores": os.cpu_count(),
            "alone": found, "together": loaded}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="any model source, or a folder that `convert` wrote")
    parser.add_argument("--guard", default="bilstm", help="a scorer, as of `llm-detox ask --guard`")
    parser.add_argument("--threshold", type=float, default=0.5)
    parser.add_argument("--in-flight", type=int, default=8)
    parser.add_argument("--requests", type=int, default=48)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="guard-speed-") as folder:
        result = measure(options, Path(folder))
    print(json.dumps(result, indent=1))
    if options.output:
        options.output.write_text(json.dumps(result, indent=1), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
