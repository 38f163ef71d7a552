"""A whole evaluation, timed: continuations generated, scored and reported, and the memory that it takes.

    python -m benchmarks.evaluate_whole --prompts FILE --output DIR [--total 10000] [--minutes 25]

Each part is a command line of its own, as a user would run it:

1. `evaluate` of a tenth of the prompts, for its memory alone;
2. `evaluate` of all of them, and `report`: the whole;
3. `evaluate --generations` of what the second one drew, and `report`: scoring and report alone.

Exit code 1 where the whole takes longer than `--minutes`, scoring and report longer than one minute, or the larger
run's peak memory exceeds the smaller one's by more than a tenth.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from llm_detox.processes import matmul_gflops
from llm_detox.progress import human_seconds, say
from llm_detox.recipe.files import load_recipe
from llm_detox.runs.artifacts import BASE, DataFolder, EvaluationFolder

GATE_NOT_PASSED = 3  # one arm alone cannot pass: expected here


@dataclass
class Run:
    """What a command took: seconds and peak resident bytes."""

    seconds: float
    peak: int


def call(arguments: Sequence[str]) -> Run:
    """Run `llm-detox` with these arguments, its output shown."""
    started = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "llm_detox.cli", *arguments])
    _, status, usage = os.wait4(process.pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if code not in (0, GATE_NOT_PASSED):
        sys.exit(f"llm-detox {arguments[0]} ended with {code}")
    return Run(time.monotonic() - started, usage.ru_maxrss * 1024)


def first_lines(source: Path, count: int, target: Path) -> Path:
    """The first so many records of a file, as a file of its own."""
    with source.open(encoding="utf-8") as lines:
        found = list(islice(lines, count))
    if len(found) < count:
        sys.exit(f"{source} has {len(found)} prompts, {count} are needed")
    target.write_text("".join(found), "utf-8")
    return target


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=Path, required=True, help="RealToxicityPrompts records, JSON lines")
    parser.add_argument("--output", type=Path, required=True, help="a folder to be made")
    parser.add_argument("--recipe", type=Path, default=Path("recipes/smollm2-demo.yaml"))
    parser.add_argument("--model", help="default: the recipe's")
    parser.add_argument("--total", type=int, default=10_000, help="continuations")
    parser.add_argument("--continuations", type=int, default=25, help="of each prompt")
    parser.add_argument("--minutes", type=float, default=25.0)
    options = parser.parse_args()
    options.output.mkdir(parents=True)
    found = measured(options)
    text = json.dumps(found, indent=2)
    print(text)
    (options.output / "figures.json").write_text(text, "utf-8")
    return 0 if found["met"] else 1


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """The three parts, and whether they kept their bounds."""
    out: Path = options.output
    model = options.model or load_recipe(options.recipe).model.source
    count = options.total // options.continuations
    whole = first_lines(options.prompts, count, DataFolder(out).prompts)
    tenth = first_lines(options.prompts, max(1, count // 10), out / "prompts-tenth.jsonl")
    recipe = ["--recipe", str(options.recipe), "--set", f"evaluation.continuations={options.continuations}"]

    def evaluate(prompts: Path, name: str, *more: str) -> Run:
        return call(["evaluate", *recipe, "--model", model, "--prompts", str(prompts), "--arm", BASE,
                     "--output", str(out / name), *more])

    def report(name: str, evaluated: str) -> Run:
        return call(["report", *recipe, "--arm", f"base={out / evaluated}", "--output", str(out / name)])

    rate = matmul_gflops(2.0)
    small = evaluate(tenth, "tenth")
    drawn = evaluate(whole, "whole")
    reported = report("report", "whole")
    scored = evaluate(whole, "again", "--generations", str(EvaluationFolder(out / "whole").generations))
    reported_again = report("report-again", "again")
    seconds, alone = drawn.seconds + reported.seconds, scored.seconds + reported_again.seconds
    say(f"the whole: {human_seconds(seconds)}; scoring and report alone: {human_seconds(alone)}")
    inside = json.loads(EvaluationFolder(out / "whole").report.read_text("utf-8"))["seconds"]
    return {"continuations": count * options.continuations, "prompts": count, "whole_seconds": round(seconds, 1),
            "evaluate_seconds": round(drawn.seconds, 1), "inside_evaluate": inside,
            "report_seconds": round(reported.seconds, 1), "scoring_and_report_seconds": round(alone, 1),
            "continuations_per_second": round(count * options.continuations / inside["sampling"], 2),
            "peak_memory_gib": round(drawn.peak / 2**30, 3), "peak_memory_of_a_tenth_gib": round(small.peak / 2**30, 3),
            "matmul_gflops": round(rate, 1),
            "met": seconds <= 60 * options.minutes and alone <= 60 and drawn.peak <= 1.1 * small.peak}


if __name__ == "__main__":
    sys.exit(main())
