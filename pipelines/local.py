"""Running a pipeline whole on this machine: the same components as in a cluster, as processes, with a real S3 store."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

import llm_detox
from llm_detox.errors import DetoxError, clear_disk_errors
from llm_detox.processes import environment, interrupted_by_sigterm
from llm_detox.recipe import Recipe
from llm_detox.recipe.addresses import OCI
from llm_detox.runs.locks import locked
from llm_detox.runs.pipeline_step import ERROR_FILE_VARIABLE, StepError
from llm_detox.serve.kept_runs import stop_kept
from llm_detox.storage.seaweed import Seaweed
from pipelines.console import step_console
from pipelines.detox_and_serve import detox_and_serve


@dataclass(frozen=True)
class LocalRun:
    """What a finished local run left behind."""

    recipe: Recipe
    report: Path
    verdict: str
    deployment: Path | None
    answers: Path | None
    seconds: float


def run_locally(recipe: Recipe, *, runs: Path, keep_serving: bool, fresh: bool) -> LocalRun:
    """Run `detox-and-serve` with Kubeflow's local runner.

    Finished steps are kept under `runs/<recipe>/` and found again by the next run of the same recipe and code,
    so an interrupted run continues where it stopped; publishing, deploying and asking always happen anew.

    Args:
        recipe: what to run.
        runs: the folder for the runs.
        keep_serving: leave the store and the served model running.
        fresh: do every step anew.

    Raises:
        DetoxError: a step failed, with the step's own message; another run of the recipe is going on; or the disk is
            full or cannot be written.
    """
    home = (runs / recipe.name).absolute()
    with clear_disk_errors(home, "choose another --runs"), locked(home):
        home.mkdir(parents=True, exist_ok=True)
        stop_kept(home)
        return _run_in(home, recipe, keep_serving=keep_serving, fresh=fresh)


def _run_in(home: Path, recipe: Recipe, *, keep_serving: bool, fresh: bool) -> LocalRun:
    started = time.monotonic()
    done = False
    note = home / "error.json"
    with (interrupted_by_sigterm(_terminate_steps), environment({ERROR_FILE_VARIABLE: str(note)}),
          _errors_of_steps(note)):
        store = Seaweed.start(home / "store", buckets=_buckets(recipe))
        try:
            with environment(store.env()):
                task = _run(recipe, home, fresh)
                run = _collect(recipe, task, home, time.monotonic() - started)
            done = True
            return run
        except KeyboardInterrupt:
            _terminate_steps()
            raise
        finally:
            if not (done and keep_serving and run.deployment):
                stop_kept(home)
                store.stop()


def _buckets(recipe: Recipe) -> list[str]:
    """Of the store; a model that becomes an image needs none."""
    return [] if recipe.publish.url.startswith(OCI) else [urlsplit(recipe.publish.url).netloc]


def stop_run(runs: Path, name: str) -> None:
    """End what an earlier run of the recipe left serving, if anything.

    Raises:
        DetoxError: a run of the recipe is going on.
    """
    home = (runs / name).absolute()
    if home.exists():
        with locked(home):
            stop_kept(home)


def code_digest() -> str:
    """Changes with the library, which Kubeflow's cache key does not see."""
    digest = hashlib.sha256()
    for file in sorted(Path(llm_detox.__file__).parent.rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def _run(recipe: Recipe, home: Path, fresh: bool) -> Any:
    from kfp import local

    local.init(
        local.SubprocessRunner(use_venv=False),
        pipeline_root=str(home / "artifacts"),
        enable_caching=not fresh,
        cache_root=str(home / "cache" / code_digest()),
    )
    with step_console(sys.stderr, home / "run.log"):
        return detox_and_serve(recipe=recipe.model_dump_json())


def _collect(recipe: Recipe, task: Any, home: Path, seconds: float) -> LocalRun:
    run_folder = max((home / "artifacts").iterdir(), key=lambda folder: folder.stat().st_mtime)
    deployment, answers = run_folder / "deploy" / "deployment", run_folder / "smoke" / "answers"
    return LocalRun(
        recipe=recipe,
        report=Path(task.outputs["report"].path),
        verdict=str(task.outputs["verdict"]),
        deployment=deployment if deployment.exists() else None,
        answers=answers if answers.exists() else None,
        seconds=seconds,
    )


def _terminate_steps() -> None:
    """The step that runs and what it started; the store has a session of its own and stops after it."""
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess, ProcessLookupError):
            if os.getpgid(child.pid) == os.getpgrp():
                child.terminate()


@contextmanager
def _errors_of_steps(note: Path) -> Iterator[None]:
    """Kubeflow says only that a task failed; the step left its own message in the note."""
    note.unlink(missing_ok=True)
    try:
        yield
    except RuntimeError as error:
        failure = StepError.read(note.read_text("utf-8")) if note.exists() else None
        if failure:
            place = f"step {failure.step}" + (f", {failure.place}" if failure.place else "")
            raise DetoxError(failure.message, place=place, remedy=failure.remedy) from None
        raise DetoxError(f"a step failed: {error}", place=str(note.parent / "run.log"),
                         remedy="its output above says why") from None
    finally:
        note.unlink(missing_ok=True)
