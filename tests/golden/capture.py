"""Records what the commands and the engine give today.

    python -m tests.golden.capture --write [SECTION...]  renews the stored outputs
    python -m tests.golden.capture FOLDER [SECTION...]   writes them elsewhere

Everything runs on one core without a network, in a folder of its own, on what `inputs` makes.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.golden.store import REPOSITORY, Store

EXPECTED = Path(__file__).resolve().parent / "expected"
MACHINE = "machine.json"
SECTIONS = (
    "rehearsal", "conversations", "detoxify", "rephrasers", "evaluation", "training", "serving", "recipe_and_data")
# What would change the outputs or their speed: threads, accelerators, downloads, the width of help pages.
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1", "LLM_DETOX_CACHE": "cache", "COLUMNS": "120", "NO_COLOR": "1",
    "PYTHONPATH": str(REPOSITORY)}


def capture(folder: Path, sections: Sequence[str] = SECTIONS) -> list[str]:
    """Write the outputs of the sections into the folder; returns the sections that failed.

    A section that fails leaves `error.txt`. Call it in a process of its own, before torch is imported.
    """
    os.environ.update(_ENVIRONMENT)
    folder = folder.resolve()
    before, failed = Path.cwd(), []
    with tempfile.TemporaryDirectory() as work:
        os.chdir(work)
        try:
            from tests.golden.inputs import write_inputs

            write_inputs(Path())
            for name in sections:
                if not _captured(name, folder / name):
                    failed.append(name)
        finally:
            os.chdir(before)
    from tests.golden.machine import fingerprint

    (folder / MACHINE).write_text(json.dumps(fingerprint(), indent=1) + "\n", "utf-8")
    return failed


def recorded_here(folder: Path) -> bool:
    """Whether the machine of this capture is the one that recorded the stored outputs."""
    return (folder / MACHINE).read_bytes() == (EXPECTED / MACHINE).read_bytes()


def _captured(name: str, folder: Path) -> bool:
    from tests.golden import recipes, rehearsals, serving, steps

    sections: dict[str, Callable[[Store], None]] = {
        "rehearsal": rehearsals.rehearsal, "conversations": rehearsals.conversations, "detoxify": steps.detoxify,
        "rephrasers": steps.rephrasers, "evaluation": steps.evaluation, "training": steps.training,
        "serving": serving.serving, "recipe_and_data": recipes.recipe_and_data}
    started = time.monotonic()
    try:
        sections[name](Store(folder))
    except Exception:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "error.txt").write_text(traceback.format_exc(), "utf-8")
        traceback.print_exc()
        return False
    print(f"{name}: {time.monotonic() - started:.0f} s", file=sys.stderr)
    return True


def renew(sections: Sequence[str]) -> list[str]:
    """Capture, and put the outputs in the place of the stored ones, if every section could be captured.

    Returns:
        the sections that failed.
    """
    with tempfile.TemporaryDirectory() as scratch:
        fresh = Path(scratch)
        if failed := capture(fresh, sections):
            return failed
        if set(sections) != set(SECTIONS) and not recorded_here(fresh):
            raise SystemExit("the other sections were recorded on another machine: renew all of them")
        for path in fresh.iterdir():
            if path.is_dir():
                shutil.rmtree(EXPECTED / path.name, ignore_errors=True)
                shutil.copytree(path, EXPECTED / path.name)
            else:
                shutil.copyfile(path, EXPECTED / path.name)
    return []


def main(words: Sequence[str]) -> int:
    """Run the module's command line; the exit code is 1 where a section failed, 2 where it was called wrongly."""
    target, sections = (words[0] if words else ""), words[1:] or SECTIONS
    if not target or set(sections) - set(SECTIONS):
        print(f"{__doc__}\nSections: {', '.join(SECTIONS)}", file=sys.stderr)
        return 2
    failed = renew(sections) if target == "--write" else capture(Path(target), sections)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
