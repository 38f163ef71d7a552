"""`llm-detox detector serve`: wrong calls are refused before anything loads, and the program answers until SIGTERM."""

from __future__ import annotations

import signal
import subprocess
import sys
import urllib.error
from pathlib import Path
from typing import Any

import pytest

from llm_detox import processes
from llm_detox.cli import detector
from llm_detox.errors import UsageError
from tests.helpers import tiny_rewriters as tiny
from tests.helpers.detecting import asked
from tests.serving.running import wait_for


@pytest.mark.parametrize(("detectors", "message"), [
    (["bilstm"], "ID=KIND"), (["=bilstm"], "ID=KIND"), (["a="], "ID=KIND"), (["é=bilstm"], "ID=KIND"),
    (["a=bilstm", "a=ngram"], "two detectors"), (["a=bart"], "'bart'"), (["a=judge="], "a judge needs a model")])
def test_detectors_that_cannot_be_served_are_refused_before_anything_loads(detectors: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        detector.serve(detectors)


def test_options_that_have_no_effect_are_refused() -> None:
    with pytest.raises(UsageError, match="recipe"):
        detector.serve(["a=bilstm"], recipe=Path("recipe.yaml"))
    with pytest.raises(UsageError, match="certificate"):
        detector.serve(["a=bilstm"], tls_key_path=Path("key.pem"))


def answered(url: str, request: Any) -> tuple[int, Any] | None:
    try:
        return asked(url, request)
    except urllib.error.URLError:
        return None


@pytest.mark.heavy
def test_the_program_answers_with_spans_and_rewrites_and_ends_when_told(tmp_path: Path) -> None:
    tiny.labelled_csv(tmp_path / "labelled.csv")
    source, model = str(tmp_path / "labelled.csv"), str(tiny.causal_folder(tmp_path / "model"))
    (tmp_path / "recipe.yaml").write_text(f"""
name: tiny
model: {{source: {model}}}
data: {{texts: {{source: {source}}}, prompts: {{sources: [{source}]}}, clean: {{sources: [{source}]}}}}
scoring: {{training: {{kind: ngram, source: {source}}}, judging: {{kind: bilstm}}}}
detoxify: {{methods: [delete], similarity_model: null, accept_similarity: 0, accept_fluency: 1000}}
""", "utf-8")
    port = processes.free_ports(1)[0]
    with (tmp_path / "log").open("wb") as log:
        program = subprocess.Popen([
            sys.executable, "-m", "llm_detox.cli", "detector", "serve", f"toxicity=ngram={source}", "--rewrite",
            "--recipe", str(tmp_path / "recipe.yaml"), "--port", str(port)], stdout=log, stderr=log)
    try:
        content = "The garden is nice today. You are a stupid friend with an old house."
        request = {"contents": [content, "The garden is nice today."], "detector_params": {"rewrite": True}}
        status, [[one], fine] = wait_for(lambda: answered(f"http://127.0.0.1:{port}", request), 120)
        program.send_signal(signal.SIGTERM)
        assert program.wait(20) == 0
    finally:
        program.kill()
        program.wait()
    assert (status, fine) == (200, [])
    assert "stupid" in one["text"] == content[one["start"]:one["end"]]
    assert "stupid" not in one["metadata"]["rewrite"]
