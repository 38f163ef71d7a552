"""The walk-through, run from top to bottom with tiny models, the later notebooks on what the earlier ones made."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from nbclient.exceptions import CellExecutionError

from llm_detox import processes
from llm_detox.serve.deployment import read_state
from llm_detox.storage.seaweed import STATE_FILE
from tests.notebooks.conftest import run, walk

pytestmark = pytest.mark.notebooks


def test_without_the_earlier_notebook_one_message_says_so(environment: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(CellExecutionError) as caught:
        run("2-eval", environment, LLM_DETOX_NOTEBOOK_RUNS=str(tmp_path))
    assert "run 1-sft.ipynb first" in caught.value.traceback
    assert "Traceback" not in caught.value.traceback


def test_the_first_notebook_trains_the_arms(environment: dict[str, str]) -> None:
    text = run("1-sft", environment)
    for arm in ("raw", "detoxified", "dpo"):
        assert (walk(environment) / arm / "adapter_model.safetensors").exists()
    assert "rewrites (offensive texts: click to see them)" in text


def test_a_second_run_finds_the_steps_of_the_first(environment: dict[str, str]) -> None:
    made = (walk(environment) / "dpo" / "manifest.json").stat().st_mtime_ns
    assert "dpo: found from an earlier run" in run("1-sft", environment)
    assert (walk(environment) / "dpo" / "manifest.json").stat().st_mtime_ns == made


def test_the_second_notebook_measures_them_and_judges_the_last(environment: dict[str, str]) -> None:
    text = run("2-eval", environment)
    arms = json.loads((walk(environment) / "report" / "report.json").read_text("utf-8"))["arms"]
    assert list(arms) == ["base", "raw", "detoxified", "dpo"]
    assert "verdict: pass" in text, "the gate of the size tiny is open"


def test_the_third_notebook_publishes_what_both_libraries_read(environment: dict[str, str]) -> None:
    text = run("3-save_convert_model", environment)
    assert re.search(r"the same tokens from transformers 5\.\S+ and 4\.", text)
    published = json.loads((walk(environment) / "published.json").read_text("utf-8"))
    assert published["address"] in text
    assert not (walk(environment).parent / "store" / STATE_FILE).exists(), "the store must have been ended"


def test_the_fourth_notebook_asks_both_models_and_ends_them(environment: dict[str, str]) -> None:
    text = run("4-inference_request", environment)
    assert "the same answer on 4 ways" in text
    for arm in ("base", "detoxified"):
        assert re.search(rf"{arm}: .*engine.* ended", text)
        state = read_state(walk(environment) / "serving" / arm)
        assert not any(processes.is_running(one) for one in state.processes)
