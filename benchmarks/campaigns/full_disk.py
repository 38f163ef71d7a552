"""Every step of a pipeline on a disk that fills up, or cannot be written: one message, and nothing half written.

    python -m benchmarks.campaigns.full_disk [--sizes 3] [--seed 7] [--steps data,detoxify,...]

The steps of a recipe run on tiny models, first as they are. Then each writes to a disk of memory that has room for a
random part of what the step needs: it must end with the message that the disk is full, and leave nothing but what the
next run continues from. With more room that run must end as if nothing had happened, byte for byte. On a disk that
cannot be written the step must say so. Only root may mount such disks. The exit code is 1 where something else happens.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.campaigns.ending import ended
from llm_detox.errors import DetoxError
from llm_detox.recipe import Recipe
from llm_detox.recipe.files import load_recipe
from llm_detox.runs.artifacts import (
    BASE,
    DPO,
    DataFolder,
    EvaluationFolder,
    ReportFolder,
    RewrittenFolder,
    TrainedFolder,
)
from llm_detox.runs.folders import read_manifest, staging_of

_RECIPE = Path(__file__).parents[2] / "recipes" / "smollm2-demo.yaml"
_LEAST, _ROOM = 4, 200_000  # KiB: of a disk that is too small, and of one that has room
_WITH_TIMES = {TrainedFolder.metrics, EvaluationFolder.report, ReportFolder.page, ReportFolder.markdown,
               ReportFolder.model_card}  # the files that hold seconds, or the paths of the run
Run = Callable[[Path], object]
"""A step: called with the folder to write."""


@dataclass
class Disks:
    """What happened.

    Attributes:
        rows: of the table: step, KiB that it needs, and the sizes of disks that were too small.
        problems: whatever should not have happened.
    """

    rows: list[tuple[str, int, list[int]]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def check(self, holds: bool, problem: str) -> None:
        if not holds:
            self.problems.append(problem)


@contextmanager
def disk(folder: Path, kibibytes: int) -> Iterator[None]:
    """A disk of memory at an empty folder."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kibibytes}k", "llm-detox", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def remount(folder: Path, option: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{option}", str(folder)], check=True)


def steps(recipe: Recipe, whole: Path) -> Mapping[str, Run]:
    """The steps of `detox-and-serve` up to the converted model; each reads what the others wrote below `whole`."""
    from llm_detox.data.prepare import prepare_data
    from llm_detox.evaluation.evaluate import evaluate_arm
    from llm_detox.evaluation.report import write_report
    from llm_detox.export.converting import convert
    from llm_detox.rephrase.detoxify import detoxify
    from llm_detox.training.dpo import train_dpo
    from llm_detox.training.sft import train_sft

    data, rewritten = DataFolder(whole / "data"), RewrittenFolder(whole / "detoxify")
    return {
        "data": lambda to: prepare_data(recipe, output=to),
        "detoxify": lambda to: detoxify(recipe, texts=data.texts, output=to),
        "sft": lambda to: train_sft(recipe, texts=rewritten.records, clean=data.clean_train, output=to),
        "dpo": lambda to: train_dpo(recipe, adapter=whole / "sft", records=rewritten.records,
                                    prompts=data.train_prompts, clean=data.clean_train, output=to),
        "evaluate": lambda to: evaluate_arm(recipe, arm=DPO, model=str(whole / "dpo"), data=data.path, output=to),
        "report": lambda to: write_report(recipe, evaluations={BASE: whole / "evaluate"}, records=rewritten.records,
                                          steps={}, output=to),
        "convert": lambda to: convert(model=str(whole / "dpo"), output=to),
    }


def digests(folder: Path) -> dict[str, str]:
    """The files of a finished step, without those that hold times."""
    return {name: file["sha256"] for name, file in read_manifest(folder)["files"].items() if name not in _WITH_TIMES}


def kibibytes(folder: Path) -> int:
    return sum(-(-path.stat().st_size // 4096) * 4 for path in folder.rglob("*") if path.is_file())


def fill(name: str, step: Run, expected: Path, mount: Path, size: int, result: Disks) -> None:
    """Run a step on a disk that is too small, look at what it left, and run it again with room."""
    place, output = f"{name} on {size} KiB", mount / "out"
    with disk(mount, size):
        try:
            step(output)
            result.check(False, f"{place}: done, though it needs more")
            return
        except DetoxError as error:
            result.check("disk is full" in error.message and bool(error.place and error.remedy), f"{place}: {error}")
        except Exception as error:
            result.check(False, f"{place}: ended with {error!r:.200}")
        left = {path.name for path in mount.iterdir()}
        result.check(left <= {staging_of(output).name}, f"{place}: left {sorted(left)}")
        remount(mount, f"size={_ROOM}k")
        step(output)
        result.check(digests(output) == digests(expected), f"{place}: the next run ended with other files")


def refuse(name: str, step: Run, mount: Path, result: Disks) -> None:
    """Run a step on a disk that cannot be written."""
    with disk(mount, _ROOM):
        remount(mount, "ro")
        try:
            step(mount / "out")
            result.check(False, f"{name}: done, on a disk that cannot be written")
        except DetoxError as error:
            result.check("cannot be written" in error.message, f"{name}, read-only: {error}")
        except Exception as error:
            result.check(False, f"{name}, read-only: ended with {error!r:.200}")


def run(recipe: Recipe, *, chosen: list[str], sizes: int, seed: int) -> Disks:
    """The whole campaign, for the chosen steps; those before them run as they are."""
    rng, result = random.Random(seed), Disks()
    with tempfile.TemporaryDirectory() as name:
        whole, mount = Path(name) / "whole", Path(name) / "disk"
        mount.mkdir()
        for step_name, step in steps(recipe, whole).items():
            if not chosen:
                break
            step(whole / step_name)
            if step_name not in chosen:
                continue
            chosen = [one for one in chosen if one != step_name]
            needed = kibibytes(whole / step_name)
            small = sorted({max(_LEAST, int(needed * rng.random() * 0.9)) for _ in range(sizes)})
            for size in small:
                fill(step_name, step, whole / step_name, mount, size, result)
            refuse(step_name, step, mount, result)
            result.rows.append((step_name, needed, small))
    return result


def table(result: Disks) -> str:
    """The result as a Markdown table."""
    rows = [f"| {name} | {needed} | {', '.join(map(str, small))} |" for name, needed, small in result.rows]
    return "\n".join(["| step | needs, KiB | disks that filled up, KiB |", "|---|---|---|", *rows])


def main() -> int:
    from llm_detox.rehearsal.run import rehearsal_of

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, default=3, help="disks that are too small, for each step")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--steps", default="data,detoxify,sft,dpo,evaluate,report,convert")
    options = parser.parse_args()
    result = run(rehearsal_of(load_recipe(_RECIPE)), chosen=options.steps.split(","), sizes=options.sizes,
                 seed=options.seed)
    print(table(result))
    return ended(result.problems, f"full disk: {sum(len(small) for *_, small in result.rows)} disks filled up, "
                                  f"{len(result.rows)} could not be written, seed {options.seed}")


if __name__ == "__main__":
    sys.exit(main())
