"""The local runs that a machine keeps: what each holds, how it ended, and how it is stopped and removed.

A run of a recipe keeps everything under RUNS/RECIPE: the steps' folders in `artifacts/RUN/STEP/OUTPUT`, the local
store in `store`, in `cache` what the next run finds again. A later run adds only the steps that it did anew.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from llm_detox.errors import DetoxError, UsageError
from llm_detox.processes import is_running
from llm_detox.runs.artifacts import ReportFolder
from llm_detox.runs.folders import MANIFEST, read_manifest
from llm_detox.runs.locks import locked, noted_holder
from llm_detox.serve.deployment import read_state

_DEPLOYMENTS = "artifacts/*/deploy/deployment"
_STEPS = "artifacts/*/*/*"


@dataclass(frozen=True)
class KeptStep:
    """A finished step, the newest of its name.

    Attributes:
        name: of the step, such as "sft-2".
        kind: of its folder.
        seconds: that it took.
        bytes: of its folder.
    """

    name: str
    kind: str
    seconds: float
    bytes: int
    path: Path


@dataclass(frozen=True)
class KeptRun:
    """All that is kept of a recipe's runs.

    Attributes:
        name: of the recipe.
        bytes: on the disk, file by file.
        changed: when the last step ended (UTC); None where none has.
        verdict: of the newest report; None where there is none.
        page: of that report.
        state: "running", "serving" or "ended".
        steps: the finished ones, in the order in which they ended.
    """

    name: str
    path: Path
    bytes: int
    changed: datetime | None
    verdict: str | None
    page: Path | None
    state: str
    steps: tuple[KeptStep, ...]


def kept_runs(runs: Path) -> list[KeptRun]:
    """All that is kept in a folder of runs, by name."""
    return [_read(home) for home in sorted(runs.glob("*")) if _is_home(home)]


def kept_run(runs: Path, name: str) -> KeptRun:
    """What is kept of one recipe.

    Raises:
        UsageError: nothing is.
    """
    return _read(_home(runs, name))


def remove_run(runs: Path, name: str) -> int:
    """Stop what a recipe's run left serving, and remove all that is kept of it; returns the bytes that this frees.

    Raises:
        UsageError: nothing is kept of it.
        DetoxError: the run is going on.
    """
    home = _home(runs, name)
    with locked(home):
        stop_kept(home)
        freed = _bytes(home)
        shutil.rmtree(home)
    return freed


def stop_kept(home: Path) -> None:
    """End what a run left serving; whoever calls this holds the run's lock."""
    from llm_detox.serve.local import stop_local  # not every command that reads runs has what serves
    from llm_detox.storage.seaweed import Seaweed

    for deployment in home.glob(_DEPLOYMENTS):
        stop_local(deployment)
    with suppress(DetoxError):
        Seaweed.attach(home / "store").stop()


def last_deployed(runs: Path) -> Path:
    """The model that a local run deployed last.

    Raises:
        UsageError: none has.
    """
    found = sorted(runs.glob(f"*/{_DEPLOYMENTS}/model"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise UsageError("no model is given, and no local run has deployed one", place=f"{runs}/",
                         remedy="llm-detox serve MODEL; in a checkout `make demo` makes one")
    return found[-1]


def _home(runs: Path, name: str) -> Path:
    home = runs / name
    if Path(name).name != name or not _is_home(home):
        raise UsageError(f"no run is called {name!r}", place=str(runs), remedy="`llm-detox runs list` shows them")
    return home


def _is_home(path: Path) -> bool:
    return (path / "artifacts").is_dir() and not path.is_symlink()


def _read(home: Path) -> KeptRun:
    steps = tuple(_steps(home))
    reports = [step for step in steps if step.kind == "report"]
    newest = reports[-1].path if reports else None
    return KeptRun(
        name=home.name, path=home, bytes=_bytes(home), steps=steps, state=_state(home),
        changed=datetime.fromtimestamp(_ended(steps[-1].path), UTC) if steps else None,
        verdict=str(read_manifest(newest)["result"].get("verdict")) if newest else None,
        page=ReportFolder(newest).page if newest else None)


def _steps(home: Path) -> Iterator[KeptStep]:
    """The newest folder of each step, in the order in which they ended."""
    finished = sorted((path for path in home.glob(_STEPS) if (path / MANIFEST).is_file()), key=_ended)
    newest = {(path.parent.name, path.name): path for path in finished}
    for path in sorted(newest.values(), key=_ended):
        with suppress(DetoxError):  # a damaged one is no step's
            manifest = read_manifest(path)
            yield KeptStep(path.parent.name, str(manifest.get("kind")), float(manifest.get("seconds", 0)),
                           _bytes(path), path)


def _ended(step: Path) -> float:
    return (step / MANIFEST).stat().st_mtime


def _state(home: Path) -> str:
    if noted_holder(home):
        return "running"
    for deployment in home.glob(_DEPLOYMENTS):
        with suppress(DetoxError):
            if any(map(is_running, read_state(deployment).processes)):
                return "serving"
    return "ended"


def _bytes(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):  # of a run that is going on, it may be gone
            total += path.lstat().st_blocks * 512
    return total
