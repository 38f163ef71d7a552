"""Every symptom of docs/troubleshooting.md is provoked here, and said in the words that stand there."""

from __future__ import annotations

import json
import re
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llm_detox.errors import DetoxError, clear_disk_errors
from llm_detox.plugins import load_plugin
from llm_detox.processes import check_port, free_ports
from llm_detox.recipe.files import load_recipe
from llm_detox.runs.folders import input_digest, read_manifest, step_folder
from llm_detox.runs.locks import locked
from tests.docs.commands import ROOT
from tests.docs.conftest import Run, Scene

PAGE = ROOT / "docs/troubleshooting.md"
DEMO = ROOT / "recipes/smollm2-demo.yaml"
Provoke = Callable[["Stage"], object]


class Stage:
    """What a mistake needs: a folder, a tiny model, the environment, commands."""

    def __init__(self, scene: Scene, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        self.scene, self.folder, self.run, self.monkeypatch = scene, scene.folder, run, monkeypatch
        self.model = Path(scene.stands_for["MODEL"])

    def command(self, *words: str) -> int:
        return self.run(["llm-detox", *words])

    def store(self, **environment: str) -> None:
        """Connect to a store with nothing in the environment but this."""
        from llm_detox.storage import fetch_source

        for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SESSION_TOKEN", "PROFILE", "S3_ENDPOINT"):
            self.monkeypatch.delenv(f"AWS_{name}", raising=False)
        for name, value in {"AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": "/none",
                            "AWS_SHARED_CREDENTIALS_FILE": "/none", **environment}.items():
            self.monkeypatch.setenv(name, value)
        self.monkeypatch.setattr("llm_detox.storage.patience.ATTEMPTS", 1)
        fetch_source("s3://bucket/key")


def _make(stage: Stage) -> None:
    done = subprocess.run(["make", "python", "PYTHON=false"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    raise DetoxError(done.stderr)


def _fetch(source: str) -> Provoke:
    def provoke(stage: Stage) -> object:
        from llm_detox.data.sources import fetch

        return fetch(source, kind="model")

    return provoke


def _going_on(stage: Stage) -> None:
    for _ in range(2):
        try:
            with step_folder(stage.folder / "out", "data", settings={}, inputs={}, resumable=True):
                raise KeyboardInterrupt
        except KeyboardInterrupt:
            pass


def _finish(output: Path, lines: int = 1) -> None:
    with step_folder(output, "rewritten", settings={}, inputs={}) as folder:
        folder.expect("records.jsonl", 1)
        (folder / "records.jsonl").write_text("{}\n" * lines, "utf-8")


def _twice(stage: Stage) -> None:
    with locked(stage.folder / "out"):
        _finish(stage.folder / "out")


def _changed(stage: Stage) -> object:
    _finish(stage.folder / "out")
    (stage.folder / "out" / "records.jsonl").write_text("[]\n", "utf-8")
    return input_digest(stage.folder / "out")


def _full(stage: Stage) -> None:
    with clear_disk_errors(stage.folder, "none"), Path("/dev/full").open("w", encoding="utf-8") as file:
        file.write("x")


def _contradictory(stage: Stage) -> object:
    from llm_detox.training.rewriters import read_classes

    texts = stage.folder / "contradictory.jsonl"
    texts.write_text("".join(json.dumps({"text": "a comment", "toxic": toxic}) + "\n" for toxic in (True, False)))
    return read_classes(texts)


def _no_text(stage: Stage) -> object:
    from llm_detox.training.encoding import training_texts

    records = stage.folder / "dropped.jsonl"
    records.write_text(json.dumps({"id": "1", "text": "", "action": "dropped"}) + "\n", "utf-8")
    return training_texts(records)


def _no_pairs(stage: Stage) -> object:
    from llm_detox.training.pairs import make_pairs

    (stage.folder / "none.jsonl").write_text("", "utf-8")
    recipe = load_recipe(DEMO, ["training.dpo.max_pairs=0"])
    return make_pairs(recipe.training.dpo, adapter=stage.model, records=stage.folder / "none.jsonl",
                      prompts=stage.folder, sampling=recipe.evaluation.sampling, scorer=recipe.scoring.training,
                      seed=recipe.seed)


def _no_model(stage: Stage) -> object:
    from llm_detox.generation.models import model_folder

    return model_folder(str(stage.folder))


def _no_layer(stage: Stage) -> object:
    from llm_detox.generation.models import load_model
    from llm_detox.training.lora import new_adapter

    recipe = load_recipe(DEMO, ["training.lora.target_modules=[c_attn]"])
    return new_adapter(load_model(str(stage.model)), recipe.training.lora, 1)  # type: ignore[arg-type]


def _broken_scorer(stage: Stage) -> object:
    from llm_detox.scoring.base import ToxicityScorer

    class Broken(ToxicityScorer):
        def score_batch(self, texts: object) -> list[None]:
            raise RuntimeError("no network")

    return Broken("broken", "broken-1", ["toxicity"], batch_size=1).score(["one", "two", "three"])


def _no_vllm(stage: Stage) -> object:
    from llm_detox.generation.generators import open_generator

    stage.monkeypatch.setattr("llm_detox.generation.vllm_generator.has_vllm", lambda: False)
    return open_generator(str(stage.model), "vllm")


def _no_weed(stage: Stage) -> object:
    from llm_detox.storage import seaweed

    stage.monkeypatch.setattr("os.access", lambda *_: False)
    return seaweed.find_weed()


def _no_caikit(stage: Stage) -> object:
    from llm_detox.serve.local_stack import caikit_python

    stage.monkeypatch.setenv("LLM_DETOX_CAIKIT_PYTHON", "/none/python")
    return caikit_python()


def _no_caikit_folder(stage: Stage) -> object:
    from llm_detox.serve.local_stack import Ports, start

    return start(stage.model, "name", Ports(1, 2, 3, 4), stage.folder)


def _taken(stage: Stage) -> object:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        return check_port(other.getsockname()[1], "REST")


def _failed_gate(stage: Stage) -> None:
    from llm_detox.evaluation.report_content import ReportSummary

    failed = ReportSummary(verdict="fail", reasons=["perplexity"], arms={}, html="report.html")
    stage.monkeypatch.setattr("llm_detox.evaluation.report.write_report", lambda *_, **__: failed)
    (stage.folder / "base").mkdir()
    stage.command("report", "--recipe", str(DEMO), "--arm", f"base={stage.folder / 'base'}", "--output", "report")


def _nobody_listens(stage: Stage) -> object:
    stage.monkeypatch.setattr("time.sleep", lambda _: None)
    return stage.command("ask", "--url", f"http://127.0.0.1:{free_ports(1)[0]}", "--timeout", "2", "Hello")


PROVOKED: dict[str, Provoke] = {
    "is not Python 3.11, which the locks are made for": _make,
    "the recipe cannot be read": lambda stage: load_recipe(stage.folder / "none.yaml"),
    "unknown key; did you mean": lambda stage: load_recipe(DEMO, ["training.sft.learning_rat=1"]),
    "the scorer that judges must differ from the one that trains or accepts":
        lambda stage: load_recipe(DEMO, ["scoring.judging={kind: bilstm}", "scoring.training={kind: bilstm}"]),
    "no such file or folder": _fetch("./none"),
    "is not installed": _fetch("package://no-such-package/file"),
    "cannot be fetched": _fetch("owner/name"),
    "no config.json: this is not a Hugging Face model folder":
        _no_model,
    "no installed package provides": lambda stage: load_plugin("llm_detox.scorers", "plugin:nobody"),
    "the output exists already":
        lambda stage: stage.command("data", "--recipe", str(DEMO), "--output", str(stage.folder)),
    "has been writing this since": _twice,
    "not what the step wrote": _changed,
    "records where": lambda stage: _finish(stage.folder / "out", 2),
    "the disk is full": _full,
    "not the finished output of a step":
        lambda stage: read_manifest(stage.folder),
    "continuing the unfinished work in": _going_on,
    "no text to train on": _no_text,
    "the labels cannot be trusted": _contradictory,
    "no preference pair could be made": _no_pairs,
    "no LoRA adapter can be put on this model": _no_layer,
    "texts stay unscored": _broken_scorer,
    "the scorer fails on every batch": _broken_scorer,
    "vLLM is not installed": _no_vllm,
    "SeaweedFS (`weed`) is not installed": _no_weed,
    "the Caikit runtime's own environment is missing": _no_caikit,
    "the verdict is": _failed_gate,
    "no credentials for the store": lambda stage: stage.store(AWS_S3_ENDPOINT="http://127.0.0.1:9"),
    "the store does not answer": lambda stage: stage.store(
        AWS_S3_ENDPOINT="http://127.0.0.1:9", AWS_ACCESS_KEY_ID="key", AWS_SECRET_ACCESS_KEY="secret"),
    "not an S3 address": lambda stage: load_recipe(DEMO, ["publish.url=s3://My_Bucket/x"]),
    "the store's address is wrong": lambda stage: stage.store(AWS_S3_ENDPOINT="127.0.0.1:9"),
    "this is not a Caikit model folder": _no_caikit_folder,
    "no model is given, and no local run has deployed one": lambda stage: stage.command("serve"),
    "cannot be used": _taken,
    "this is not a deployment": lambda stage: stage.command("stop", str(stage.folder)),
    "UNAVAILABLE": _nobody_listens,
}


@pytest.fixture
def stage(scene: Scene, run: Run, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(scene.folder)
    return Stage(scene, run, monkeypatch)


def test_every_symptom_of_the_page_is_provoked() -> None:
    rows = re.findall(r"^\| (.+?) \| ", PAGE.read_text("utf-8").partition("## Environment variables")[0], re.M)
    symptoms = [row.strip("`") for row in rows if row.startswith("`")]
    assert sorted(symptoms) == sorted(PROVOKED)


@pytest.mark.parametrize("symptom", PROVOKED)
def test_a_symptom_is_said_in_these_words(symptom: str, stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    said = ""
    try:
        PROVOKED[symptom](stage)
    except DetoxError as error:
        said = str(error)
    shown = capsys.readouterr()
    assert symptom in said + shown.out + shown.err
