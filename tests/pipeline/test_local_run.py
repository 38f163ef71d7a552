"""The whole pipeline, run for real on a small budget: every step, both branches of the gate, a failing step."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from llm_detox.errors import DetoxError
from llm_detox.processes import is_running
from llm_detox.recipe.files import load_recipe
from llm_detox.runs.locks import locked
from llm_detox.storage.seaweed import Seaweed
from pipelines.local import run_locally, stop_run
from tests.helpers.pipelines import run_pipeline, small_recipe

OPEN_GATE = {"metrics": [], "max_perplexity_ratio": 1000.0, "max_continuation_perplexity_ratio": None,
             "min_distinct_ratio": None, "max_clean_refusals": None, "max_unscored_share": 1.0, "min_prompts": 1}
_OF_A_LIBRARY = re.compile(r"site-packages|Warning:|\b(?:WARNING|INFO)\b")


def of_libraries(run: subprocess.CompletedProcess[str]) -> list[str]:
    """What libraries, not we, have said on the screen: Python's warnings and lines of logs."""
    return [line for line in (run.stdout + run.stderr).splitlines() if _OF_A_LIBRARY.search(line)]


@pytest.mark.heavy
def test_a_model_that_passes_the_gate_is_published_served_and_answers(tmp_path: Path, tiny_llama: Path) -> None:
    recipe = small_recipe(tmp_path, tiny_llama, gate=OPEN_GATE)
    run = run_pipeline(recipe, tmp_path)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    assert "verdict: pass" in run.stdout
    [smoke] = (tmp_path / "runs/small/artifacts").glob("*/smoke/answers/manifest.json")
    assert json.loads(smoke.read_text("utf-8"))["result"]["text"]
    [page] = (tmp_path / "runs/small/artifacts").glob("*/report/report/report.html")
    assert "dpo" in page.read_text("utf-8")
    assert "Traceback" not in run.stdout + run.stderr
    assert of_libraries(run) == []


@pytest.mark.heavy
def test_a_model_that_fails_the_gate_is_neither_published_nor_deployed(tmp_path: Path, tiny_llama: Path) -> None:
    recipe = small_recipe(tmp_path, tiny_llama)
    run = run_pipeline(recipe, tmp_path)
    assert run.returncode == 3, run.stdout[-3000:] + run.stderr[-3000:]
    assert "not published and not deployed" in run.stderr
    [artifacts] = (tmp_path / "runs/small/artifacts").iterdir()
    assert {path.name for path in artifacts.iterdir()}.isdisjoint({"convert", "publish", "deploy", "smoke"})

    again = run_pipeline(recipe, tmp_path)
    assert again.returncode == 3, again.stdout[-3000:] + again.stderr[-3000:]
    assert {path for path in artifacts.parent.iterdir() if path != artifacts and (path / "data").exists()} == set()
    assert "== evaluate: found from an earlier run ==" in again.stderr
    assert "== evaluate base ==" not in again.stderr, "a second run must reuse the steps that are finished"


def test_a_failing_step_reaches_the_user_as_one_message(tmp_path: Path, tiny_llama: Path) -> None:
    recipe = small_recipe(tmp_path, tiny_llama)
    run = run_pipeline(recipe, tmp_path, "--set", "data.texts.text_column=body")
    assert run.returncode == 1
    assert "error: step data" in run.stderr
    assert "'body' is missing" in run.stderr
    assert "Traceback" not in run.stdout + run.stderr


@pytest.mark.parametrize("told", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_told_to_end_takes_its_step_and_store_along(
        tmp_path: Path, tiny_llama: Path, told: signal.Signals) -> None:
    recipe = small_recipe(tmp_path, tiny_llama)
    with subprocess.Popen(
        [sys.executable, "-m", "pipelines", "run", "--recipe", str(recipe), "--runs", str(tmp_path / "runs")],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
    ) as run:
        assert run.stderr is not None
        for line in run.stderr:
            if line.startswith("== data =="):
                break
        store = Seaweed.attach(tmp_path / "runs/small/store")
        steps = psutil.Process(run.pid).children(recursive=True)
        run.send_signal(told)
        run.communicate(timeout=60)
    assert run.returncode == 130
    assert not is_running(store.process)
    assert len(steps) > 2
    assert psutil.wait_procs(steps, timeout=20)[1] == []


def test_a_run_is_neither_joined_nor_stopped_by_a_second_one_of_its_recipe(tmp_path: Path, tiny_llama: Path) -> None:
    """The second would end the store and the model of the first, and write where it writes."""
    recipe = load_recipe(small_recipe(tmp_path, tiny_llama))
    with locked(tmp_path / "runs" / recipe.name):
        (tmp_path / "runs" / recipe.name).mkdir()
        for second in (lambda: run_locally(recipe, runs=tmp_path / "runs", keep_serving=False, fresh=False),
                       lambda: stop_run(tmp_path / "runs", recipe.name)):
            with pytest.raises(DetoxError, match=rf"process {os.getpid()} .* has been writing this since"):
                second()
        assert list((tmp_path / "runs" / recipe.name).iterdir()) == []


@pytest.mark.parametrize("change", ["training.sft.epochs=many", "data.texts.sorce=x"])
def test_a_wrong_recipe_is_refused_before_any_work(tmp_path: Path, tiny_llama: Path, change: str) -> None:
    run = run_pipeline(small_recipe(tmp_path, tiny_llama), tmp_path, "--set", change)
    assert run.returncode == 2
    assert change.split("=")[0] in run.stderr
    assert not (tmp_path / "runs").exists()
