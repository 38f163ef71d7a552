"""What local runs keep is listed with its verdict and state, and removed whole, but not under a run that goes on."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llm_detox.cli import app
from llm_detox.errors import DetoxError, UsageError
from llm_detox.processes import Process, is_running, spawn, stop
from llm_detox.runs.folders import MANIFEST, step_folder
from llm_detox.runs.locks import locked
from llm_detox.serve.deployment import DeploymentState
from llm_detox.serve.kept_runs import kept_run, kept_runs, remove_run


@dataclass(frozen=True)
class Ended:
    verdict: str


def _step(runs: Path, name: str, output: str, kind: str, result: Ended, *, run: str = "a",
          seconds_ago: int = 0) -> Path:
    path = runs / "mine/artifacts" / run / name / output
    with step_folder(path, kind, settings={}, inputs={}) as folder:
        (folder / "content").write_bytes(b"x" * 10_000)
        folder.finish(result)
    moment = time.time() - seconds_ago
    os.utime(path / MANIFEST, (moment, moment))
    return path


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two runs of one recipe: the second made only the report anew."""
    runs = tmp_path / "runs"
    _step(runs, "data", "data", "data", Ended("none"), seconds_ago=300)
    _step(runs, "report", "report", "report", Ended("fail"), seconds_ago=200)
    _step(runs, "report", "report", "report", Ended("pass"), run="b", seconds_ago=100)
    (runs / "notebooks").mkdir()
    return runs


@pytest.fixture
def serving(runs: Path) -> Iterator[Process]:
    deployment = runs / "mine/artifacts/b/deploy/deployment"
    deployment.mkdir(parents=True)
    process = spawn("engine", [sys.executable, "-c", "import time; time.sleep(600)"], log=runs / "log")
    DeploymentState("m", {}, processes=(process,)).write(deployment)
    yield process
    stop(process)


def test_the_newest_folder_of_each_step_counts(runs: Path) -> None:
    (one,) = kept_runs(runs)
    assert [(step.name, step.path.parts[-3]) for step in one.steps] == [("data", "a"), ("report", "b")]
    assert (one.name, one.verdict, one.state) == ("mine", "pass", "ended")
    assert one.page == runs / "mine/artifacts/b/report/report/report.html"
    assert one.bytes >= 3 * 10_000 > one.steps[0].bytes >= 10_000


def test_a_damaged_manifest_hides_its_step_alone(runs: Path) -> None:
    (runs / "mine/artifacts/b/report/report" / MANIFEST).write_text("{")
    assert kept_run(runs, "mine").verdict is None
    assert [step.name for step in kept_run(runs, "mine").steps] == ["data"]


def test_a_run_that_goes_on_is_shown_and_not_removed(runs: Path) -> None:
    with locked(runs / "mine"):
        assert kept_run(runs, "mine").state == "running"
        with pytest.raises(DetoxError, match="has been writing this since"):
            remove_run(runs, "mine")
    assert kept_run(runs, "mine").state == "ended"


def test_the_note_of_a_killed_run_does_not_count(runs: Path) -> None:
    gone = {"pid": 2**22 + 1, "host": "here", "command": "c", "since": "s"}
    (runs / ".mine.lock").write_text(json.dumps(gone))
    assert kept_run(runs, "mine").state == "ended"


def test_removing_ends_what_is_served_and_leaves_other_runs(runs: Path, serving: Process) -> None:
    assert kept_run(runs, "mine").state == "serving"
    freed = remove_run(runs, "mine")
    assert freed >= 3 * 10_000
    assert not is_running(serving)
    assert not (runs / "mine").exists()
    assert (runs / "notebooks").exists()


@pytest.mark.parametrize("name", ["other", "notebooks", ".", "..", "", "../runs/mine", "/"])
def test_what_is_no_run_is_neither_shown_nor_removed(runs: Path, name: str) -> None:
    for act in (kept_run, remove_run):
        with pytest.raises(UsageError, match="no run is called"):
            act(runs, name)
    assert (runs / "mine").exists()


def test_the_commands_list_show_and_remove(runs: Path) -> None:
    def called(*arguments: str) -> str:
        outcome = CliRunner().invoke(app, ["runs", *arguments, "--runs", str(runs)], input="n\n")
        assert outcome.exit_code == (1 if arguments == ("remove", "mine") else 0), outcome.output
        return outcome.output

    assert "mine" in called("list")
    assert json.loads(called("list", "--json"))["runs"][0]["verdict"] == "pass"
    assert "verdict: pass" in called("show", "mine")
    assert [step["step"] for step in json.loads(called("show", "mine", "--json"))["steps"]] == ["data", "report"]
    called("remove", "mine")
    assert (runs / "mine").exists()
    assert "are free again" in called("remove", "mine", "--yes")
    assert not (runs / "mine").exists()
