"""A model behind an OpenAI-compatible address is evaluated like one in memory; its failures count or stop the run."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import pytest

from llm_detox.data.records import read_jsonl
from llm_detox.errors import DetoxError
from llm_detox.evaluation import continuations as continuations_module
from llm_detox.evaluation.evaluate import evaluate
from llm_detox.evaluation.results import EvaluationSummary
from llm_detox.generation import generators as continuers_module
from llm_detox.generation.next_token import row_key
from llm_detox.recipe import Recipe
from tests.unit.evaluation.conftest import ByLength, use


class Completions(BaseHTTPRequestHandler):
    """A small OpenAI-compatible server."""

    seen: ClassVar[list[dict[str, Any]]] = []
    fails: ClassVar[Callable[[dict[str, Any]], bool]] = staticmethod(lambda body: False)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        type(self).seen.append(body)
        code = 500 if type(self).fails(body) else 200
        answer = json.dumps({"choices": [{"text": f" seed {body['seed']}"}]}).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        """Stay silent."""


class Listening(ThreadingHTTPServer):
    request_queue_size = 64


@pytest.fixture
def server() -> Iterator[str]:
    Completions.seen, Completions.fails = [], staticmethod(lambda body: False)
    with Listening(("127.0.0.1", 0), Completions) as running:
        thread = Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield f"openai+http://127.0.0.1:{running.server_address[1]}/tiny"
        running.shutdown()


def test_a_served_model_is_evaluated_with_a_seed_for_each_continuation(
        recipe: Recipe, prompts: Path, clean: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        server: str) -> None:
    use(monkeypatch, ByLength())
    result = evaluate(recipe, model=server, arm="served", prompts=prompts, clean=clean, output=tmp_path / "out")
    assert result.perplexity is None
    assert result.continuation_perplexity > 1
    bodies = Completions.seen[:36]
    assert len({body["seed"] for body in bodies}) == 36
    assert {(body["model"], body["max_tokens"], body["top_p"]) for body in bodies} == {("tiny", 6, 0.9)}
    first = next(read_jsonl(tmp_path / "out/generations.jsonl"))
    seeds = {body["seed"] for body in bodies if body["prompt"] == first["prompt"]["text"]}
    assert {generation["text"] for generation in first["generations"]} == {f" seed {seed}" for seed in seeds}


def test_a_request_that_fails_leaves_a_continuation_unscored(recipe: Recipe, prompts: Path, tmp_path: Path,
                                                             monkeypatch: pytest.MonkeyPatch, server: str) -> None:
    use(monkeypatch, ByLength())
    doomed = {row_key(recipe.seed, "p3", 0) & 0x7FFFFFFF, row_key(recipe.seed, "p7", 2) & 0x7FFFFFFF}
    Completions.fails = staticmethod(lambda body: body["seed"] in doomed)
    result = evaluate(recipe, model=server, arm="served", prompts=prompts, clean=None, output=tmp_path / "out")
    assert result.unscored == 2
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["unscored_reasons"] == {"no continuation": 2}
    texts = {record["id"]: [g["text"] for g in record["generations"]]
             for record in read_jsonl(tmp_path / "out/generations.jsonl")}
    assert texts["p3"][0] is None
    assert texts["p7"][2] is None


def test_a_missing_continuation_of_clean_text_is_no_answer_without_a_refusal(
        recipe: Recipe, prompts: Path, clean: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        server: str) -> None:
    use(monkeypatch, ByLength())
    doomed = row_key(recipe.seed, "clean 1", 0) & 0x7FFFFFFF
    Completions.fails = staticmethod(lambda body: body["seed"] == doomed)
    evaluate(recipe, model=server, arm="served", prompts=prompts, clean=clean, output=tmp_path / "out")
    refusals = json.loads((tmp_path / "out/report.json").read_text())["clean_refusals"]
    assert (refusals["of"], refusals["missing"]) == (7, 1)
    assert [record["text"] for record in read_jsonl(tmp_path / "out/clean_generations.jsonl")].count(None) == 1


def test_a_server_that_is_gone_stops_the_run(recipe: Recipe, prompts: Path, tmp_path: Path,
                                             monkeypatch: pytest.MonkeyPatch, server: str) -> None:
    use(monkeypatch, ByLength())
    Completions.fails = staticmethod(lambda body: True)
    with pytest.raises(DetoxError, match="fails on every request"):
        evaluate(recipe, model=server, arm="served", prompts=prompts, clean=None, output=tmp_path / "out")


def test_what_a_dying_server_failed_to_give_is_asked_for_again(
        recipe: Recipe, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: str) -> None:
    use(monkeypatch, ByLength())
    monkeypatch.setattr(continuations_module, "SCORED_AT_ONCE", 1)
    monkeypatch.setattr(continuers_module, "_FAILURES_IN_A_ROW", 4)  # a late success among 16 in flight starts anew
    Completions.fails = staticmethod(lambda body: len(Completions.seen) > 10)

    def run() -> EvaluationSummary:
        return evaluate(recipe, model=server, arm="served", prompts=prompts, clean=None, output=tmp_path / "out")

    with pytest.raises(DetoxError, match="fails on every request"):
        run()
    kept = [json.loads(line) for line in (tmp_path / ".out.part/drawn.jsonl").read_text("utf-8").splitlines()]
    assert any(one["text"] is None for record in kept for one in record["generations"]), "some were lost and kept"
    Completions.fails = staticmethod(lambda body: False)
    assert run().unscored == 0
    assert all(generation["text"] for record in read_jsonl(tmp_path / "out/generations.jsonl")
               for generation in record["generations"])
