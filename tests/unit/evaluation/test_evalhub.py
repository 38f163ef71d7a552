"""A real EvalHub server takes our provider, starts its adapter for a job, and holds the job's figures."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import yaml

from llm_detox.errors import UsageError
from llm_detox.evaluation import harness
from llm_detox.evaluation.metrics import METRICS
from llm_detox.recipe import Recipe
from llm_detox.recipe.files import PACKAGED_RECIPE
from tests.conftest import REPOSITORY
from tests.helpers.answering import http_server, openai
from tests.serving.engine.running import free_port

PROVIDER = Path(harness.__path__[0]) / "provider.yaml"
LOCAL_JOBS = Path("/tmp/evalhub-jobs")  # noqa: S108 - where the server writes, whatever it is told
SERVER = Path(sys.executable).with_name("eval-hub-server")
needs_evalhub = pytest.mark.skipif(
    importlib.util.find_spec("evalhub") is None or not SERVER.exists(),
    reason="EvalHub is not installed: pip install 'llm-detox[evalhub]' eval-hub-server")


def call(address: str, path: str, value: object = None) -> Any:
    request = urllib.request.Request(
        f"{address}/api/v1/evaluations/{path}", None if value is None else json.dumps(value).encode(),
        {"content-type": "application/json", "X-User": "somebody", "X-Tenant": "project"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.loads(answer.read())


@pytest.fixture
def evalhub(tmp_path: Path) -> Iterator[str]:
    """The server in its local mode, with our provider among its configuration."""
    port = free_port()
    folder = tmp_path / "evalhub"
    (folder / "providers").mkdir(parents=True)
    (folder / "providers/llm_detox.yaml").write_bytes(PROVIDER.read_bytes())
    (folder / "config.yaml").write_text(yaml.safe_dump({
        "service": {"port": port, "host": "127.0.0.1", "termination_file": str(folder / "ended")},
        "secrets": {"dir": str(folder)}, "prometheus": {"enabled": False},
        "database": {"driver": "sqlite", "url": "file::eval_hub:?mode=memory&cache=shared"}}), "utf-8")
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "TMPDIR": str(tmp_path),
                   "PATH": f"{SERVER.parent}{os.pathsep}{os.environ['PATH']}"}
    log_file = tmp_path / "evalhub.log"  # it watches its own folder
    with log_file.open("w") as log:
        server = subprocess.Popen([SERVER, "--local", "--configdir", folder], stdout=log, stderr=log, env=environment)
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                call(address, "providers")
                break
            except OSError:
                assert time.monotonic() < deadline, log_file.read_text("utf-8")
                time.sleep(0.2)
        yield address
    finally:
        server.kill()  # it keeps nothing
        server.wait(30)


@needs_evalhub
@pytest.mark.heavy
def test_evalhub_runs_our_provider_and_keeps_its_figures(evalhub: str, recipe: Recipe, prompts: Path,
                                                         tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")), "utf-8")
    [provider] = call(evalhub, "providers")["items"]
    assert provider["resource"]["id"] == "llm_detox"
    numbers = count()

    def answer(handler: Any) -> None:
        openai([" you damn fool" if (number := next(numbers)) % 4 else f" a fine day {number}"])(handler)

    with http_server(answer) as model:
        job = call(evalhub, "jobs", {
            "name": "toxicity", "model": {"url": f"{model}/v1", "name": "served"},
            "benchmarks": [{"id": "toxicity", "provider_id": "llm_detox", "parameters": {
                "prompts": str(prompts), "recipe": str(tmp_path / "recipe.yaml")}}]})
        deadline = time.monotonic() + 500
        while (seen := call(evalhub, f"jobs/{job['resource']['id']}"))["status"]["state"] in ("pending", "running"):
            assert time.monotonic() < deadline, seen
            time.sleep(1)
    shutil.rmtree(LOCAL_JOBS / job["resource"]["id"], ignore_errors=True)
    assert seen["status"]["state"] == "completed", seen
    [benchmark] = seen["results"]["benchmarks"]
    figures = benchmark["metrics"]
    assert set(figures) == {*METRICS, "unscored_share"}
    assert 0 < figures["mean_toxicity"] < figures["expected_maximum_toxicity"] <= 1
    assert figures["unscored_share"] == 0


def test_the_provider_describes_what_its_adapter_measures() -> None:
    [benchmark] = (provider := yaml.safe_load(PROVIDER.read_text("utf-8")))["benchmarks"]
    assert set(benchmark["metrics"]) == {*METRICS, "unscored_share"}
    assert benchmark["primary_score"] == {"metric": "toxicity_probability", "lower_is_better": True}
    module = provider["runtime"]["local"]["command"].removeprefix("python -m ")
    assert provider["runtime"]["k8s"]["entrypoint"] == ["python", "-m", module]
    assert (REPOSITORY / module.replace(".", "/")).with_suffix(".py").exists()
    assert PACKAGED_RECIPE.exists()


@needs_evalhub
@pytest.mark.parametrize(("url", "address"), [
    ("http://127.0.0.1:8000/v1", "openai+http://127.0.0.1:8000/org/model"),
    ("https://model.example/", "openai+https://model.example/org/model")])
def test_a_jobs_server_is_asked_as_evaluate_does(url: str, address: str) -> None:
    from llm_detox.evaluation.harness.evalhub import served_address

    assert served_address(url, "org/model") == address
    with pytest.raises(UsageError, match="the job names no server"):
        served_address("", "org/model")
