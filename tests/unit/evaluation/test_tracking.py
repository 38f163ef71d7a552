"""Reports in MLflow: a real server holds recipe, figures and files; the same report is there once."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llm_detox.errors import DetoxError, UsageError
from llm_detox.evaluation.evaluate import evaluate
from llm_detox.evaluation.report import write_report
from llm_detox.evaluation.report_content import read_report
from llm_detox.evaluation.tracking import RECIPE_TAG, REPORT_TAG, flat_settings, report_digest, report_metrics
from llm_detox.recipe import Recipe
from llm_detox.recipe.evaluation import TrackingSection
from tests.helpers.answering import http_server, reply
from tests.serving.engine.running import free_port
from tests.unit.evaluation.conftest import ByLength, use

EXPERIMENT = "detox"
needs_client = pytest.mark.skipif(importlib.util.find_spec("mlflow") is None,
                                  reason="mlflow is not installed: pip install 'llm-detox[mlflow]'")
needs_server = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("mlflow", "flask", "sqlalchemy", "alembic")),
    reason="MLflow's server is not installed: pip install mlflow")


@pytest.fixture
def tracked(recipe: Recipe) -> Recipe:
    return recipe.model_copy(update={"tracking": TrackingSection(mlflow_experiment=EXPERIMENT)})


@pytest.fixture
def evaluations(recipe: Recipe, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    use(monkeypatch, ByLength())
    evaluate(recipe, model=recipe.model.source, arm="base", prompts=prompts, clean=None, output=tmp_path / "base")
    return {"base": tmp_path / "base"}


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    address = f"http://127.0.0.1:{(port := free_port())}"
    with (tmp_path / "mlflow.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
             "--backend-store-uri", f"sqlite:///{tmp_path}/mlflow.db", "--artifacts-destination", tmp_path / "files"],
            stdout=log, stderr=log, cwd=tmp_path, start_new_session=True,
            env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"})
    try:
        deadline = time.monotonic() + 400
        while True:
            try:
                urllib.request.urlopen(f"{address}/health", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None, (tmp_path / "mlflow.log").read_text("utf-8")
                assert time.monotonic() < deadline, (tmp_path / "mlflow.log").read_text("utf-8")
                time.sleep(0.5)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)  # its workers, too
        process.wait(60)


def ask(address: str, path: str, value: object = None) -> Any:
    request = urllib.request.Request(f"{address}/api/2.0/mlflow/{path}",
                                     None if value is None else json.dumps(value).encode(),
                                     {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())


@needs_server
@pytest.mark.heavy
def test_a_report_is_a_run_with_recipe_figures_and_files_and_is_sent_once(
        server: str, tracked: Recipe, evaluations: dict[str, Path], tmp_path: Path) -> None:
    for output in ("first", "second"):
        write_report(tracked, evaluations=evaluations, records=None, steps={}, output=tmp_path / output)
    experiment = ask(server, f"experiments/get-by-name?experiment_name={EXPERIMENT}")["experiment"]["experiment_id"]
    [run] = ask(server, "runs/search", {"experiment_ids": [experiment]})["runs"]
    assert run["info"]["status"] == "FINISHED"
    tags = {one["key"]: one["value"] for one in run["data"]["tags"]}
    assert tags[REPORT_TAG] == report_digest(tracked, evaluations)
    assert len(tags[RECIPE_TAG]) == 64
    params = {one["key"]: one["value"] for one in run["data"]["params"]}
    assert params["evaluation.continuations"] == "3"
    assert params["gate.metrics.0"] == "mean_toxicity"
    assert len(params) > 150, "more than one batch"
    metrics = {one["key"]: one["value"] for one in run["data"]["metrics"]}
    toxicity = read_report(tmp_path / "first").arms["base"].mean_toxicity
    assert toxicity
    assert [metrics[f"base/mean_toxicity{end}"] for end in ("", "/low", "/high")] == [
        toxicity.value, toxicity.low, toxicity.high]
    files = ask(server, f"artifacts/list?run_id={run['info']['run_id']}")["files"]
    assert {one["path"] for one in files} == {"report.html", "report.json", "model_card.md"}
    changed = tracked.model_copy(update={"description": "another one"})
    write_report(changed, evaluations=evaluations, records=None, steps={}, output=tmp_path / "third")
    assert len(ask(server, "runs/search", {"experiment_ids": [experiment]})["runs"]) == 2


def test_an_experiment_needs_a_server(tracked: Recipe, evaluations: dict[str, Path], tmp_path: Path,
                                      monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UsageError, match="no MLflow server is named"):
        write_report(tracked, evaluations=evaluations, records=None, steps={}, output=tmp_path / "out")
    assert not (tmp_path / "out").exists(), "the step can be run again"


@needs_client
def test_a_server_that_refuses_is_one_error_without_its_login(
        tracked: Recipe, evaluations: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with http_server(lambda handler: reply(handler, 403, b'{"error_code": "PERMISSION_DENIED"}')) as url:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", url.replace("://", "://me:hush@"))
        with pytest.raises(DetoxError, match="MLflow did not take the report") as caught:
            write_report(tracked, evaluations=evaluations, records=None, steps={}, output=tmp_path / "out")
    assert "hush" not in str(caught.value)


def test_without_an_experiment_nothing_is_imported_or_asked(
        recipe: Recipe, evaluations: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "mlflow", None)  # an import would fail
    write_report(recipe, evaluations=evaluations, records=None, steps={}, output=tmp_path / "out")
    metrics = dict(report_metrics(read_report(tmp_path / "out")))
    assert metrics["base/prompts"] == 12
    assert metrics["base/mean_toxicity/low"] <= metrics["base/mean_toxicity"] <= metrics["base/mean_toxicity/high"]
    assert "base/perplexity" not in metrics, "what was not measured is left out"


def test_settings_are_flat_and_the_experiment_changes_no_digest(recipe: Recipe, tracked: Recipe) -> None:
    flat = dict(flat_settings({"a": {"b": [1, {"c": True}], "d": None, "e": ""}, "f": 0.5}))
    assert flat == {"a.b.0": "1", "a.b.1.c": "True", "f": "0.5"}
    assert report_digest(recipe, {}) == report_digest(tracked, {})
