"""The served stack under attack, through the real Caikit and the engine: alive, memory flat, other clients served.

    python -m benchmarks.campaigns.served_stack [--seconds 5] [--seed 7] [--attacks "slow clients,deep JSON"]

A tiny model is served as `llm-detox serve` does it. Each attack (`benchmarks.campaigns.attacks`) runs for so long from
a process of its own, with many clients. Meanwhile ordinary clients ask over REST and over gRPC, each on a new
connection: every answer must be right and come in time. After each attack both servers must be there and healthy; over
all of them their memory and their logs must not grow beyond bounds. The exit code is 1 where one of this does not hold.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks.campaigns.attacks import ATTACKS, Target, attack
from benchmarks.campaigns.ending import ended
from llm_detox import processes
from llm_detox.client import GenerationError, TextGenerationClient
from llm_detox.export.converting import convert
from llm_detox.serve.deployment import DeploymentState
from llm_detox.serve.local import serve_folder, stop_local
from llm_detox.serve.local_stack import Ports

NAME, PROMPT, TOKENS = "attacked", "the quick brown", 8
LONGEST_SECONDS = 10.0
MOST_GROWTH_MIB, MOST_LOG_MIB = 400.0, 50.0
_ORDINARY_PAUSE, _WARM_UP, _LATE = 0.25, 40, 60.0


@dataclass(frozen=True)
class Row:
    """One attack.

    Attributes:
        name: of the attack.
        done: how often it was done.
        answers: how many ordinary requests were answered meanwhile.
        slowest: seconds of the slowest of them.
        memory: MiB of Caikit and engine when it was over.
    """

    name: str
    done: int
    answers: int
    slowest: float
    memory: tuple[float, float]


@dataclass
class Attacked:
    """What happened: MiB of Caikit and engine before the first attack and at most, MiB that the logs have grown."""

    before: tuple[float, float] = (0.0, 0.0)
    most: tuple[float, float] = (0.0, 0.0)
    log: float = 0.0
    rows: list[Row] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


class Stack:
    """A served model, as those who ask it and those who watch it see it."""

    def __init__(self, state: DeploymentState) -> None:
        self.state, self.urls = state, state.urls
        engine, caikit = (next(one for one in state.processes if one.name == name) for name in ("engine", "caikit"))
        self.servers = (caikit, engine)
        self.target = Target(*(int(self.urls[kind].rpartition(":")[2]) for kind in ("rest", "grpc")), NAME)

    def ask(self, protocol: str) -> tuple[str, float]:
        """The answer to the ordinary question on a new connection, and its seconds."""
        started = time.monotonic()
        with TextGenerationClient(self.urls[protocol], NAME, timeout=_LATE, retries=0) as client:
            text = client.generate(PROMPT, max_new_tokens=TOKENS).text
        return text, time.monotonic() - started

    def memory(self) -> tuple[float, float]:
        """MiB of Caikit and engine."""
        caikit, engine = (psutil.Process(one.pid).memory_info().rss / 2**20 for one in self.servers)
        return caikit, engine

    def log_size(self) -> float:
        return sum(Path(one.log).stat().st_size for one in self.servers) / 2**20

    def faults(self) -> list[str]:
        """Which server is not there, or not healthy."""
        gone = [f"{one.name} has ended: {processes.last_lines(one.log, 3)}" for one in self.servers
                if not processes.is_running(one)]
        for name in () if gone else ("rest", "engine"):
            try:
                address = f"{self.urls[name]}/health"
                with urllib.request.urlopen(address, timeout=LONGEST_SECONDS) as answer:  # noqa: S310  our own servers
                    gone += [] if answer.status == 200 else [f"{name} is not healthy"]
            except OSError as error:
                gone.append(f"{name} is not healthy: {error}")
        return gone


def suffer(stack: Stack, name: str, seconds: float, seed: int, expected: str, result: Attacked) -> None:
    """One attack, with ordinary clients beside it."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        attacking = pool.apply_async(attack, (name, stack.target, seconds, seed))
        answers, slowest, until = 0, 0.0, time.monotonic() + seconds + 3 * LONGEST_SECONDS
        while not attacking.ready() and time.monotonic() < until:
            for protocol in ("rest", "grpc"):
                try:
                    text, took = stack.ask(protocol)
                except GenerationError as error:
                    result.problems.append(f"{name}: an ordinary client over {protocol} got {error.code}: {error}")
                    continue
                answers, slowest = answers + 1, max(slowest, took)
                if text != expected:
                    result.problems.append(f"{name}: an ordinary client over {protocol} got {text!r}")
            result.most = _larger(result.most, stack.memory())
            time.sleep(_ORDINARY_PAUSE)
        done = attacking.get(LONGEST_SECONDS) if attacking.ready() else 0
    result.problems += [f"{name}: {fault}" for fault in stack.faults()]
    if slowest > LONGEST_SECONDS:
        result.problems.append(f"{name}: an ordinary client waited for {slowest:.1f} s")
    result.rows.append(Row(name, done, answers, slowest, stack.memory()))


def _larger(one: tuple[float, float], other: tuple[float, float]) -> tuple[float, float]:
    return max(one[0], other[0]), max(one[1], other[1])


def run(*, seconds: float, seed: int, names: Sequence[str] = tuple(ATTACKS)) -> Attacked:
    """The whole campaign, on a stack of its own."""
    from llm_detox.rehearsal.models import tiny_model

    result = Attacked()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        with processes.environment({"LLM_DETOX_CACHE": str(work / "cache")}):
            convert(model=str(tiny_model("HuggingFaceTB/SmolLM2-135M-Instruct")), output=work / "model")
        try:
            stack = Stack(serve_folder(work / "model", name=NAME, ports=Ports.choose(), output=work / "serving",
                                       lifeline=True))
            expected = stack.ask("rest")[0]
            for _ in range(_WARM_UP):
                stack.ask("grpc")
            result.before, log = stack.memory(), stack.log_size()
            for name in names:
                suffer(stack, name, seconds, seed, expected, result)
            result.log = stack.log_size() - log
            for server, before, after in zip(("Caikit", "the engine"), result.before, stack.memory(), strict=True):
                if after - before > MOST_GROWTH_MIB:
                    result.problems.append(f"{server} has grown from {before:.0f} to {after:.0f} MiB")
            if result.log > MOST_LOG_MIB:
                result.problems.append(f"the logs have grown by {result.log:.0f} MiB")
        finally:
            stop_local(work / "serving")
    return result


def table(result: Attacked) -> str:
    """The result as a Markdown table."""
    rows = [f"| {row.name} | {row.done} | {row.answers} | {row.slowest:.1f} | "
            f"{row.memory[0]:.0f} | {row.memory[1]:.0f} |" for row in result.rows]
    return "\n".join(["| attack | times | answers to others | slowest, s | Caikit, MiB | engine, MiB |",
                      "|---|---|---|---|---|---|", *rows])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5, help="of each attack")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--attacks", default=",".join(ATTACKS))
    options = parser.parse_args()
    result = run(seconds=options.seconds, seed=options.seed, names=options.attacks.split(","))
    print(table(result))
    print(f"memory before: Caikit {result.before[0]:.0f}, engine {result.before[1]:.0f} MiB; at most "
          f"{result.most[0]:.0f} and {result.most[1]:.0f}; logs grew by {result.log:.1f} MiB")
    return ended(result.problems, f"served stack: {len(result.rows)} attacks of {options.seconds:g} s, "
                                  f"{sum(row.answers for row in result.rows)} answers to others, seed {options.seed}")


if __name__ == "__main__":
    sys.exit(main())
