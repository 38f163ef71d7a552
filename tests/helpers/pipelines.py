"""The whole pipeline on a tiny model, as a process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tests.helpers.sources import make_sources

SMALL = {
    "detoxify": {"methods": ["delete"], "similarity_model": None, "accept_fluency": 100.0, "otherwise": "keep"},
    "training": {
        "sft": {"batch_size": 4, "max_length": 48},
        "dpo": {"batch_size": 4, "max_length": 48, "samples_per_prompt": 3, "margin": 0.0, "max_pairs": 8},
    },
    "evaluation": {"continuations": 3, "clean_prompts": 3, "bootstrap_samples": 200,
                   "sampling": {"max_new_tokens": 8}},
    "deploy": {"max_new_tokens": 8},
}


def small_recipe(folder: Path, model: Path, **changes: Any) -> Path:
    """A recipe of the tiny model on a handful of sentences, as a file."""
    values = make_sources(folder)
    values["model"]["source"] = str(model)
    values["scoring"]["training"]["source"] = values["data"]["texts"]["source"]
    values.update(SMALL)
    values.update(changes)
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(values), "utf-8")
    return path


def run_pipeline(recipe: Path, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipelines", "run", "--recipe", str(recipe), "--runs", str(folder / "runs"), *options],
        capture_output=True, text=True, timeout=580, cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": f"{Path(__file__).parents[2]}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"},
    )
