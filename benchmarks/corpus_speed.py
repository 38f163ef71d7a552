"""How fast a corpus is cleaned, and in how much memory: `clean-corpus`, `detoxify`, and datatrove's filter chain.

    python -m benchmarks.corpus_speed --data ../shared/data/paradetox_dev.tsv --lines 2000 --shares 0 0.05 0.5

A corpus has so many lines, of which a share is toxic by the recipe's scorer: sentences of ParaDetox, and people's
rewrites of them. Each way is a command of its own; what it takes for a corpus of a few lines, start and models, is
taken off. Memory is the proportional set size of the command and its processes at its highest. `--datatrove FOLDER`
(`pip install --target FOLDER datatrove orjson`) adds its filter chain with the same scorer, which only leaves out;
`--whole N` cleans N lines once unbroken and once killed twice, and compares all bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.corpus_texts import ParaDetox
from llm_detox.api import PACKAGED_RECIPE
from llm_detox.processes import matmul_gflops

CLI = [sys.executable, "-m", "llm_detox.cli"]
FEW = 64


@dataclass(frozen=True)
class Taken:
    """What a command took: seconds, bytes at most."""

    seconds: float
    bytes: int


def main() -> None:
    options = parsed()
    recipe = ["--recipe", str(options.recipe), *(word for one in options.set or () for word in ("--set", one))]
    with tempfile.TemporaryDirectory(dir=options.work) as name:
        work = Path(name)
        texts = ParaDetox(options.data)
        print(f"{matmul_gflops():.0f} GFLOP/s, {len(os.sched_getaffinity(0))} cores, {options.workers} workers, "
              f"recipe {options.recipe.name} {' '.join(options.set or ())}")
        if options.shares:
            speed(options, recipe, texts, work)
        if options.whole:
            whole(options, recipe, texts, work)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="TSV of ParaDetox")
    parser.add_argument("--recipe", type=Path, default=PACKAGED_RECIPE)
    parser.add_argument("--set", action="append", help="a value of the recipe")
    parser.add_argument("--lines", type=int, default=2000, help="of a corpus with toxic lines")
    parser.add_argument("--clean-lines", type=int, default=100_000, help="of one without")
    parser.add_argument("--shares", type=float, nargs="*", default=[0, 0.05, 0.5])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--without-today", action="store_true", help="leave out detoxify")
    parser.add_argument("--datatrove", type=Path, help="folder with its packages")
    parser.add_argument("--whole", type=int, default=0, help="lines of the corpus that is killed twice")
    parser.add_argument("--whole-share", type=float, default=0.001, help="share of toxic lines in it")
    parser.add_argument("--work", type=Path, help="folder for the corpora")
    return parser.parse_args()


def speed(options: argparse.Namespace, recipe: list[str], texts: ParaDetox, work: Path) -> None:
    print("| toxic | lines | way | lines/s | toxic lines/s | seconds, start and models among them | memory |")
    print("|---|---|---|---|---|---|---|")
    few = texts.corpus(work / "few.jsonl", FEW, 0.1)
    starts: dict[str, Taken] = {}
    for share in options.shares:
        lines = options.lines if share else options.clean_lines
        corpus = texts.corpus(work / f"{share}.jsonl", lines, share)
        for way, command in ways(options, recipe).items():
            if way not in starts:
                starts[way] = run(command, few, work / f"few-{way}")
            taken = run(command, corpus, work / f"{share}-{way}")
            seconds = max(taken.seconds - starts[way].seconds, 0.01)
            toxic = f"{lines * share / seconds:.1f}" if share else "-"
            print(f"| {share:.0%} | {lines:,} | {way} | {lines / seconds:,.0f} | {toxic} | {taken.seconds:.0f} "
                  f"({starts[way].seconds:.0f}) | {taken.bytes / 2**30:.2f} GiB |", flush=True)


def ways(options: argparse.Namespace, recipe: list[str]) -> dict[str, list[str]]:
    """Name -> command, with IN and OUT for the places."""
    found = {"clean-corpus": [*CLI, "clean-corpus", "IN", "OUT", "--workers", str(options.workers), *recipe]}
    if not options.without_today:
        found["detoxify"] = [*CLI, "detoxify", "--input", "IN", "--output", "OUT", *recipe]
    if options.datatrove:
        found["datatrove"] = [sys.executable, "-m", "benchmarks.corpus_datatrove", str(options.datatrove), "IN", "OUT",
                              str(options.workers)]
    return found


def run(command: Sequence[str], corpus: Path, output: Path) -> Taken:
    """The command on a corpus.

    Raises:
        RuntimeError: it failed.
    """
    started = time.perf_counter()
    process = start(command, corpus, output)
    most = Watched(process)
    if process.wait():
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
    return Taken(time.perf_counter() - started, most.bytes)


def start(command: Sequence[str], corpus: Path, output: Path) -> subprocess.Popen[bytes]:
    words = [{"IN": str(corpus), "OUT": str(output)}.get(word, word) for word in command]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    return subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


class Watched:
    """The memory of a process and its children at its highest, looked at four times a second."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.bytes = 0
        self.history: list[int] = []
        self._process = process
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while self._process.poll() is None:
            now = sum(map(_proportional, _family(self._process.pid)))
            self.bytes = max(self.bytes, now)
            self.history.append(now)
            time.sleep(0.25)


def _family(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split()
    except OSError:
        return [pid]
    return [pid, *(one for child in children for one in _family(int(child)))]


def _proportional(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text("ascii").splitlines()
    except OSError:  # it has ended
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


def whole(options: argparse.Namespace, recipe: list[str], texts: ParaDetox, work: Path) -> None:
    """One corpus unbroken, and killed after a third and two thirds of its time."""
    corpus = texts.corpus(work / "whole.jsonl", options.whole, options.whole_share)
    command = ways(options, recipe)["clean-corpus"]
    started = time.perf_counter()
    process = start(command, corpus, work / "unbroken")
    memory = Watched(process)
    if process.wait():
        raise RuntimeError("the unbroken run failed")
    seconds = time.perf_counter() - started
    print(f"{options.whole:,} lines, {options.whole_share:.1%} toxic: {seconds:.0f} s, "
          f"{options.whole / seconds:,.0f} lines/s, at most {memory.bytes / 2**30:.2f} GiB; by tenths of its time "
          + ", ".join(f"{one / 2**30:.2f}" for one in tenths(memory.history)), flush=True)
    for _ in range(2):
        process = start(command, corpus, work / "killed")
        time.sleep(seconds / 3)
        assert process.poll() is None, "it ended before it was killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
    run(command, corpus, work / "killed")
    same = digests(work / "unbroken") == digests(work / "killed")
    print(f"killed twice: {'every file equal, byte for byte' if same else 'NOT EQUAL'}")
    total = json.loads((work / "unbroken" / "statistics.json").read_text("utf-8"))["total"]
    print({name: value for name, value in total.items() if isinstance(value, int)})
    if not same:
        sys.exit(1)


def tenths(history: Sequence[int]) -> list[int]:
    """The highest value of each tenth."""
    size = max(1, len(history) // 10)
    return [max(history[first:first + size]) for first in range(0, size * 10, size) if history[first:first + size]]


def digests(folder: Path) -> dict[str, str]:
    """Every file but the manifest, which has the time."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.rglob("*"))
            if path.is_file() and path.name != "manifest.json"}


if __name__ == "__main__":
    main()
