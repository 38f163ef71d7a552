"""Submitting to a pipeline server: a stand-in speaks its API over real HTTP and TLS."""

from __future__ import annotations

import errno
import json
import ssl
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from llm_detox.errors import DetoxError, GateNotPassed, UsageError
from llm_detox.recipe import Recipe
from pipelines.placement import Placement
from pipelines.submit import FinishedRun, PipelineServer, Submission, submit
from tests.conftest import REPOSITORY
from tests.pipeline.specs import step_of, steps

TOKEN = "let-me-in"


class StandIn:
    """A KFP v2beta1 API for one run, whose states come from a list."""

    def __init__(self, certificate: tuple[Path, Path] | None = None) -> None:
        self.looks: list[dict[str, Any]] = [self.state("SUCCEEDED")]
        self.submitted: list[dict[str, Any]] = []
        self.failures = 0
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.answer(None)

            def do_POST(self) -> None:
                self.answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def answer(self, body: Any) -> None:
                status, value = stand_in.answer(self.path, self.headers.get("authorization"), body)
                text = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        scheme = "http"
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*certificate)
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
            scheme = "https"
        self.url = f"{scheme}://localhost:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, path: str, token: str | None, body: Any) -> tuple[int, Any]:
        if token != f"Bearer {TOKEN}":
            return 401, {"error": "Unauthorized"}
        if path.endswith("/healthz"):
            return 200, {"multi_user": False}
        if "/experiments" in path:
            return 200, ({"experiment_id": "e1", "display_name": body["display_name"]} if body else {"experiments": []})
        if body is not None:
            self.submitted.append(body)
            return 200, {"run_id": "r1"}
        if self.failures:
            self.failures -= 1
            return 503, {"error": "starting"}
        return 200, {"run_id": "r1", **(self.looks.pop(0) if len(self.looks) > 1 else self.looks[0])}

    @staticmethod
    def state(state: str, **steps: str) -> dict[str, Any]:
        return {"state": state, "run_details": {"task_details": [
            {"task_id": name, "display_name": name, "state": one} for name, one in steps.items()]}}


@pytest.fixture
def server() -> Iterator[StandIn]:
    stand_in = StandIn()
    yield stand_in
    stand_in.server.shutdown()


@pytest.fixture
def token(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\n", "utf-8")
    return path


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    from llm_detox.recipe.files import load_recipe

    return load_recipe(REPOSITORY / "recipes" / "smollm2-demo.yaml")


def run(recipe: Recipe, server: PipelineServer, **options: Any) -> Submission | FinishedRun:
    return submit(recipe, server, experiment="trial", placement=Placement.load(), poll_seconds=0.01, **options)


def watch(recipe: Recipe, server: PipelineServer, **options: Any) -> Submission | FinishedRun:
    """`run` of the pipeline that compiles fastest, where the states alone matter."""
    return run(recipe, server, pipeline="evaluate-only", **options)


def test_the_recipe_and_the_placed_pipeline_are_sent_and_the_steps_shown(
    server: StandIn, token: Path, recipe: Recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    server.looks = [server.state("RUNNING", data="RUNNING"), server.state("RUNNING", data="SUCCEEDED", sft="RUNNING"),
                    server.state("SUCCEEDED", data="SUCCEEDED", sft="SUCCEEDED")]
    result = run(recipe, PipelineServer(server.url, token))
    assert result.state == "SUCCEEDED"
    assert result.url == f"{server.url}/#/runs/details/r1"
    body = server.submitted[0]
    sent = Recipe.model_validate_json(body["runtime_config"]["parameters"]["recipe"])
    assert sent.deploy.target == "kserve"
    assert sent.model == recipe.model
    assert "platform_spec" in body["pipeline_spec"], "the secrets and tolerations go along"
    captured = capsys.readouterr()
    assert not captured.out, "stdout is for the result"
    told = captured.err
    assert told.index("data: running") < told.index("data: succeeded") < told.index("sft-raw: succeeded")
    assert TOKEN not in captured.out + captured.err


def test_a_model_that_does_not_pass_the_gate_is_its_own_outcome(server: StandIn, token: Path, recipe: Recipe) -> None:
    server.looks = [server.state("SUCCEEDED", report="SUCCEEDED", gate="SKIPPED")]
    with pytest.raises(GateNotPassed):
        watch(recipe, PipelineServer(server.url, token))


def test_a_failed_step_is_named(server: StandIn, token: Path, recipe: Recipe) -> None:
    server.looks = [server.state("FAILED", data="SUCCEEDED", dpo="FAILED")]
    with pytest.raises(DetoxError, match="FAILED; failed: dpo"):
        watch(recipe, PipelineServer(server.url, token))


def test_a_server_that_is_away_for_a_moment_is_waited_for(server: StandIn, token: Path, recipe: Recipe) -> None:
    server.failures = 3  # after the run was accepted
    assert watch(recipe, PipelineServer(server.url, token)).state == "SUCCEEDED"


def test_without_waiting_the_run_is_left_to_itself(server: StandIn, token: Path, recipe: Recipe) -> None:
    assert watch(recipe, PipelineServer(server.url, token), wait=False).state == "SUBMITTED"


def test_a_wrong_token_is_said_without_showing_it(server: StandIn, tmp_path: Path, recipe: Recipe) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("secret-but-wrong", "utf-8")
    with pytest.raises(DetoxError, match="refuses the token") as caught:
        run(recipe, PipelineServer(server.url, wrong))
    assert "secret-but-wrong" not in str(caught.value)


@pytest.mark.parametrize("host", ["localhost:8888", "ftp://host", "http://127.0.0.1:9"])
def test_a_host_that_is_none_is_said(host: str, token: Path, recipe: Recipe) -> None:
    with pytest.raises((UsageError, DetoxError), match=r"not the URL|does not answer"):
        run(recipe, PipelineServer(host, token))


@pytest.mark.parametrize("fails", ["pipelines.compile.compile_one", "kfp.Client.run_pipeline"])
def test_a_full_disk_here_is_not_told_as_a_server_that_does_not_answer(
    fails: str, server: StandIn, token: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/somewhere/pipeline.yaml")

    monkeypatch.setattr(fails, full)
    with pytest.raises(DetoxError, match="the disk is full") as caught:
        watch(recipe, PipelineServer(server.url, token))
    assert "does not answer" not in str(caught.value)
    assert "TMPDIR" in str(caught.value.remedy)


def test_an_own_authority_is_trusted_when_given_and_only_then(tmp_path: Path, token: Path, recipe: Recipe) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
                    "-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", certificate],
                   check=True, capture_output=True)
    stand_in = StandIn((certificate, key))
    try:
        assert watch(recipe, PipelineServer(stand_in.url, token, certificate)).state == "SUCCEEDED"
        with pytest.raises(DetoxError, match="certificate is not trusted"):
            watch(recipe, PipelineServer(stand_in.url, token))
    finally:
        stand_in.server.shutdown()


def test_promote_sends_the_published_version_to_its_own_pipeline(server: StandIn, token: Path, recipe: Recipe) -> None:
    run(recipe, PipelineServer(server.url, token), pipeline="promote", parameters=["address=s3://models/tiny/abc"])
    body = server.submitted[0]
    assert body["runtime_config"]["parameters"]["address"] == "s3://models/tiny/abc"
    assert body["pipeline_spec"]["pipeline_spec"]["pipelineInfo"]["name"] == "promote"


def test_parameters_are_sent_as_the_pipeline_declares_them(server: StandIn, token: Path, recipe: Recipe) -> None:
    overrides = ["detoxify.methods=[delete,causal]", "seed=7"]
    run(recipe, PipelineServer(server.url, token),
        parameters=["shards=4", *(f"overrides={one}" for one in overrides), "model=a/b=c"])
    sent = server.submitted[0]["runtime_config"]["parameters"]
    assert (sent["shards"], sent["overrides"], sent["model"]) == (4, overrides, "a/b=c")


@pytest.mark.parametrize("parameters", [(), ("overrides=training.job.nodes=2",)])
def test_steps_that_only_watch_the_training_of_other_nodes_hold_no_gpu(
    server: StandIn, token: Path, recipe: Recipe, parameters: tuple[str, ...]
) -> None:
    run(recipe, PipelineServer(server.url, token), parameters=parameters)
    spec = server.submitted[0]["pipeline_spec"]["pipeline_spec"]["deploymentSpec"]["executors"]
    with_gpu = {step_of(name) for name, one in spec.items() if "accelerator" in one["container"]["resources"]}
    assert with_gpu == {"detoxify", "sample", "measure", *(() if parameters else ("sft", "dpo"))}


@pytest.mark.parametrize("fresh", [False, True])
def test_a_fresh_run_takes_nothing_from_the_cache(
    server: StandIn, token: Path, recipe: Recipe, fresh: bool
) -> None:
    run(recipe, PipelineServer(server.url, token), fresh=fresh)
    cached = {step for step, task in steps(server.submitted[0]["pipeline_spec"]["pipeline_spec"])
              if task["cachingOptions"].get("enableCache")}
    assert bool(cached) is not fresh


def test_a_failed_shard_is_not_hidden_by_the_shards_that_went_well(
    server: StandIn, token: Path, recipe: Recipe
) -> None:
    look = server.state("FAILED")
    look["run_details"]["task_details"] = [
        {"task_id": str(number), "display_name": "detoxify", "state": state}
        for number, state in enumerate(["SUCCEEDED", "FAILED", "SUCCEEDED"])]
    server.looks = [look]
    with pytest.raises(DetoxError, match="FAILED; failed: detoxify"):
        watch(recipe, PipelineServer(server.url, token))


@pytest.mark.parametrize(("options", "told"), [
    ({"pipeline": "promote"}, "promote needs address"),
    ({"parameters": ["address=s3://models/x"]}, "is not a parameter of detox-and-serve"),
    ({"parameters": ["shards"]}, "is not a parameter"),
    ({"parameters": ["recipe={}"]}, "is not a parameter"),
    ({"parameters": ["overrides=sed=7"]}, "did you mean 'seed'"),
    ({"parameters": ["shards=many"]}, "is not a number"),
    ({"pipeline": "train-judge", "parameters": ["records=x"]}, "train-judge needs publish_url"),
    ({"pipeline": "other"}, "no such pipeline"),
])
def test_parameters_that_do_not_fit_are_refused(token: Path, recipe: Recipe, options: Any, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        run(recipe, PipelineServer("http://127.0.0.1:9", token), **options)
