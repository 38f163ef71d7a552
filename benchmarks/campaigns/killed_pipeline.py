"""The whole pipeline, killed with -9 again and again: does it end as if nothing had happened?

    python -m benchmarks.campaigns.killed_pipeline [--count 60] [--seed 7]

`detox-and-serve` of the demo's recipe runs on tiny models up to the served answer, first unbroken. Then it is killed
in its start and in its steps, one after the other, at random moments: all of its processes, the process that runs the
steps alone, or the step alone. The next run continues; once all steps had their kill, one runs to its end. Every
folder that a step put in place, in whichever run, must have the files of the unbroken run, byte for byte (but for
those that hold times); the store must have one version, whole and the same; the model must have answered the same,
and no process may be left. The exit code is 1 where something else happens.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks.campaigns.ending import ended
from benchmarks.campaigns.full_disk import digests
from llm_detox.errors import DetoxError
from llm_detox.processes import environment
from llm_detox.storage import fetch_model
from llm_detox.storage.publishing import versions
from llm_detox.storage.seaweed import seaweed

_REPOSITORY = Path(__file__).parents[2]
_RECIPE = _REPOSITORY / "recipes" / "smollm2-demo.yaml"
_NAME, _BUCKET, _URL = "killed", "models", "s3://models/killed"
_OPEN_GATE = {"metrics": "[]", "max_perplexity_ratio": 1000, "max_continuation_perplexity_ratio": "null",
              "min_distinct_ratio": "null", "max_clean_refusals": "null", "max_unscored_share": 1, "min_prompts": 1}
_SMALL = {
    "data.texts.count": 24, "data.prompts.evaluation_count": 8, "data.prompts.training_count": 8, "data.clean.count": 6,
    "data.clean.training_count": 6, "training.dpo.samples_per_prompt": 3, "training.dpo.max_pairs": 8,
    "training.dpo.anchor_samples": 4, "evaluation.continuations": 2, "evaluation.clean_prompts": 4,
    "evaluation.bootstrap_samples": 200, "evaluation.sampling.max_new_tokens": 8, "deploy.max_new_tokens": 8,
    "scoring.others": "[]"}
_SETTINGS = [f"name={_NAME}", f"publish.url={_URL}", *(f"gate.{key}={value}" for key, value in _OPEN_GATE.items()),
             *(f"{key}={value}" for key, value in _SMALL.items())]
_BEGUN = re.compile(r"== (?!.* done in )(.+?)(?:: found from an earlier run)? ==")
START = "start"
VICTIMS = ("all", "the run", "the step")
_LONGEST_SECONDS = 900.0


@dataclass
class Kills:
    """What happened.

    Attributes:
        at: (step, who was killed) -> how often.
        runs: how many runs there were, and how many of them had to wait for a process of the one before.
        ends: how many went to the end and were compared.
        problems: whatever should not have happened.
    """

    at: Counter[tuple[str, str]] = field(default_factory=Counter)
    runs: int = 0
    waited: int = 0
    ends: int = 0
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Unbroken:
    """The run that nobody killed: its steps with their seconds, and what came out."""

    steps: list[tuple[str, float]]
    outcome: dict[str, object]


class Run:
    """One process of `python -m pipelines run`, and the steps that it has begun."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.begun: list[tuple[str, float]] = [(START, time.monotonic())]
        self.said: list[str] = []
        command = [sys.executable, "-m", "pipelines", "run", "--recipe", str(_RECIPE), "--tiny", "--runs",
                   str(work / "runs")]
        for setting in _SETTINGS:
            command += ["--set", setting]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                                        cwd=_REPOSITORY, start_new_session=True,
                                        env={**os.environ, "LLM_DETOX_CACHE": str(work / "cache")})
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append(line.rstrip())
            if found := _BEGUN.match(line):
                self.begun.append((found[1], time.monotonic()))

    def reaches(self, step: int) -> bool:
        """Wait until the step of that number has begun; False where the run ended before."""
        while len(self.begun) <= step:
            if self.process.poll() is not None:
                self._reader.join(5)
                return len(self.begun) > step
            time.sleep(0.02)
        return True

    def end(self) -> int:
        """Wait for its end; returns its exit code."""
        code = self.process.wait(_LONGEST_SECONDS)
        self._reader.join(5)
        return code

    def kill(self, victim: str) -> str:
        """Kill whom the word names, or the run where no step is there; returns who it was."""
        with contextlib.suppress(psutil.NoSuchProcess):
            of_step = [one for one in psutil.Process(self.process.pid).children(recursive=True)
                       if "weed" not in one.name()]
            if victim == "all":
                _kill(processes_of(self.work))
            elif victim == "the step" and of_step:
                _kill(of_step)
                return victim
        self.process.kill()
        return "the run" if victim == "the step" else victim


def _kill(processes: Sequence[psutil.Process]) -> None:
    for one in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.send_signal(signal.SIGKILL)


def processes_of(work: Path) -> list[psutil.Process]:
    """All processes that have something in the folder in their command."""
    mine = []
    for one in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if one.pid != os.getpid() and any(str(work) in word for word in one.cmdline()):
                mine.append(one)
    return mine


def outcome(work: Path, scratch: Path) -> dict[str, object]:
    """What a run that went to its end has left.

    Returns:
        Step and folder -> digests of its files, of each one that was put in place; the answer; the store's version.

    Raises:
        DetoxError: a folder is half written, or the store lacks something.
    """
    home, result = work / "runs" / f"{_NAME}-tiny", dict[str, object]()
    for number, run in enumerate(sorted((home / "artifacts").iterdir())):
        for folder in sorted(run.glob("*/[!.]*/")):
            name = f"{folder.parent.name}/{folder.name}"
            if folder.parent.name == "smoke":
                result["answer"] = json.loads((folder / "manifest.json").read_text("utf-8"))["result"]["text"]
            elif folder.parent.name != "deploy" and result.setdefault(name, files := digests(folder)) != files:
                raise DetoxError(f"{name} of the run {number} has other files than before")
    with seaweed(home / "store", buckets=[_BUCKET]) as store, environment(store.env()):
        result["versions"] = [one.digest for one in versions(_URL)]
        fetch_model(_URL, scratch / "fetched")
    result["fetched"] = {str(path.relative_to(scratch)): path.read_bytes() for path in scratch.rglob("*")
                         if path.is_file()}
    return result


def unbroken(work: Path) -> Unbroken:
    """Run it once as it is, and remove it.

    Raises:
        DetoxError: it does not go to its end.
    """
    run = Run(work)
    if run.end():
        raise DetoxError("the unbroken run did not go to its end:\n" + "\n".join(run.said[-20:]))
    times = [when for _, when in run.begun] + [time.monotonic()]
    steps = [(name, later - when) for (name, when), later in zip(run.begun, times[1:], strict=True)]
    with _emptied(work, remove=True) as scratch:
        return Unbroken(steps, outcome(work, scratch))


@contextlib.contextmanager
def _emptied(work: Path, *, remove: bool) -> Iterator[Path]:
    (work / "scratch").mkdir()
    try:
        yield work / "scratch"
    finally:
        shutil.rmtree(work / "scratch")
        if remove:
            shutil.rmtree(work / "runs")


def life(work: Path, whole: Unbroken, steps: Sequence[int], rng: random.Random, result: Kills) -> None:
    """Kill a pipeline once in each of the steps, let it go to its end, and compare."""
    for number in steps:
        name, seconds = whole.steps[number]
        victim, delay = rng.choice(VICTIMS), rng.random() * seconds
        run = _begun(work, result)
        if not run.reaches(number):
            result.problems.append(f"{name}: the run ended before with {run.end()}: {' / '.join(run.said[-3:])}")
            continue
        with contextlib.suppress(subprocess.TimeoutExpired):
            run.process.wait(delay)
        hit = run.begun[-1][0]
        result.at[hit, run.kill(victim)] += 1
        run.end()
        if any("Traceback" in line for line in run.said):
            result.problems.append(f"{hit}, {victim} killed: a traceback")
    run = _begun(work, result)
    if run.end():
        result.problems.append(f"the last run ended with {run.process.returncode}: {' / '.join(run.said[-3:])}")
        return
    result.ends += 1
    result.problems += [f"left running: {' '.join(one.cmdline())[:200]}" for one in processes_of(work)]
    _compare(work, whole, result)


def _compare(work: Path, whole: Unbroken, result: Kills) -> None:
    try:
        with _emptied(work, remove=True) as scratch:
            outcome_here = outcome(work, scratch)
    except DetoxError as error:
        result.problems.append(str(error))
        return
    result.problems += [f"{name} is not that of the unbroken run" for name in whole.outcome | outcome_here
                        if whole.outcome.get(name) != outcome_here.get(name)]


def _begun(work: Path, result: Kills) -> Run:
    """A run that has begun; where a process of the run before still holds its folder, that is waited for."""
    until = time.monotonic() + _LONGEST_SECONDS
    while True:
        result.runs += 1
        run = Run(work)
        if run.reaches(1) or time.monotonic() > until or not any("has been writing this" in line for line in run.said):
            return run
        result.waited += 1
        time.sleep(1)


def run(*, count: int, seed: int, steps: Sequence[str] = ()) -> Kills:
    """The whole campaign.

    Args:
        count: how many kills.
        seed: of the moments and of who is killed.
        steps: only in these; by default in all.
    """
    rng, result = random.Random(seed), Kills()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name).resolve()
        whole = unbroken(work)
        chosen = [number for number, (step, _) in enumerate(whole.steps) if not steps or step in steps]
        left = count
        while left > 0 and not result.problems:
            some = sorted(rng.sample(chosen, min(left, len(chosen))))
            life(work, whole, some, rng, result)
            left -= len(some)
        _kill(processes_of(work))
    return result


def table(result: Kills) -> str:
    """The kills as a Markdown table."""
    rows = [f"| {step} | " + " | ".join(str(result.at[step, victim]) for victim in VICTIMS) + " |"
            for step in dict.fromkeys(step for step, _ in result.at)]
    return "\n".join([f"| killed in | {' | '.join(VICTIMS)} |", "|---|---|---|---|", *rows])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=60, help="how many kills")
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    result = run(count=options.count, seed=options.seed)
    print(table(result))
    return ended(result.problems, f"killed pipeline: {result.at.total()} kills in {result.runs} runs, {result.ends} "
                                  f"went to their end and were compared, {result.waited} waited for a process of the "
                                  f"run before, seed {options.seed}")


if __name__ == "__main__":
    sys.exit(main())
