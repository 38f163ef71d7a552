"""The cluster's own pipelines, run for real by Kubeflow's local runner: shards, joins, parameters, the outcome."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llm_detox.recipe_file import load_recipe
from llm_detox.rephrase.detoxify import CHUNK, detoxify
from tests.conftest import REPOSITORY
from tests.pipeline.test_local_run import small_recipe
from tests.unit.test_data import make_sources

pytestmark = pytest.mark.slow

RUN = """
import json, sys
from kfp import local
from pipelines import cluster
local.init(local.SubprocessRunner(use_venv=False), pipeline_root=sys.argv[1], raise_on_error=False)
getattr(cluster, sys.argv[2])(**json.loads(sys.argv[3]))
"""


def run(folder: Path, pipeline: str, **parameters: Any) -> tuple[dict[str, Path], str]:
    """The outputs of all tasks by the name of the task, and the log."""
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(folder / "artifacts"), pipeline, json.dumps(parameters)], cwd=REPOSITORY,
        capture_output=True, text=True, timeout=580,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "KUBECONFIG": str(folder / "no-cluster")})
    found = {path.name: path for path in (folder / "artifacts").glob("*/*")}
    return found, done.stdout + done.stderr


def recipe(folder: Path, model: Path) -> str:
    return load_recipe(small_recipe(folder, model)).model_dump_json()


def many_comments(folder: Path) -> list[str]:
    """Overrides for so many comments that each of two shards has chunks to rewrite."""
    make_sources(folder / "many", comments=3 * CHUNK)
    return [f"data.texts.source={folder / 'many' / 'comments.csv'}", f"data.texts.count={2 * CHUNK + 40}",
            "training.sft.max_steps=4"]


def test_a_run_in_shards_measures_all_arms_and_stops_at_the_gate(tmp_path: Path, tiny_llama: Path) -> None:
    overrides = ["evaluation.continuations=2", *many_comments(tmp_path)]
    settled = load_recipe(small_recipe(tmp_path, tiny_llama), overrides)
    found, log = run(tmp_path, "detox_and_serve", recipe=recipe(tmp_path, tiny_llama), shards=2, overrides=overrides)
    assert "report" in found, log[-4000:]
    assert set(found).isdisjoint({"convert", "publish", "deploy", "smoke"})
    report = json.loads((found["report"] / "report" / "report.json").read_text("utf-8"))
    assert set(report["arms"]) == {"base", "raw", "detoxified", "dpo"}
    assert report["arms"]["base"]["continuations"] == 2 * report["arms"]["base"]["prompts"]
    texts = found["data"] / "data/texts.jsonl"
    assert len(texts.read_text("utf-8").splitlines()) > 2 * CHUNK, "both shards have records"
    detoxify(settled, texts=texts, output=tmp_path / "whole")
    assert ((found["join"] / "rewritten/records.jsonl").read_bytes()
            == (tmp_path / "whole/records.jsonl").read_bytes())
    told = json.loads((found["outcome"] / "outcome" / "outcome.json").read_text("utf-8"))
    assert told["state"] == "SUCCEEDED"


def test_a_run_that_fails_writes_its_outcome(tmp_path: Path, tiny_llama: Path) -> None:
    found, log = run(tmp_path, "evaluate_only", recipe=recipe(tmp_path, tiny_llama), model=str(tmp_path / "no-model"))
    assert "outcome" in found, log[-4000:]
    told = json.loads((found["outcome"] / "outcome" / "outcome.json").read_text("utf-8"))
    assert told["state"] == "FAILED"
    assert "no cluster is configured" in told["unseen"]


def test_a_wrong_parameter_ends_the_run_before_any_work(tmp_path: Path, tiny_llama: Path) -> None:
    found, log = run(tmp_path, "detox_and_serve", recipe=recipe(tmp_path, tiny_llama), rollout="sideways")
    assert "rollout" in log
    assert set(found) <= {"settle", "outcome"}
    assert "outcome" in found, log[-4000:]
