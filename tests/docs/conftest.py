"""A folder in which the commands of the docs find what they name: tiny models, a few texts, small servers."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.docs.commands import ROOT
from tests.helpers import answering
from tests.helpers.sources import make_sources

SENTENCES = [("you are a stupid idiot and I hate you so much", True), ("this is a fine day for a walk", False),
             ("shut up you dumb moron, will you", True), ("thank you for the lovely dinner, it was great", False)]
# What an endpoint says: a continuation, and as a judge a verdict.
SAID = [" a fine", " day. Chatbot is: good."]
Run = Callable[[Sequence[str]], int]


@dataclass(frozen=True)
class Scene:
    """Where commands run, and what their placeholders stand for."""

    folder: Path
    stands_for: dict[str, str]

    def filled(self, words: Sequence[str]) -> list[str]:
        """The words with the placeholders filled in, and small models in place of the recipe's."""
        filled = [self._fill(word) for word in words]
        small = ["--set", f"model.source={self.stands_for['MODEL']}"]
        return [*filled, *(small if "recipes/smollm2-demo.yaml" in words and words[1] == "detoxify" else [])]

    def _fill(self, word: str) -> str:
        for name, value in self.stands_for.items():
            if word == name or (len(name) > 8 and name in word):
                word = word.replace(name, value)
        return word


@pytest.fixture
def scene(tmp_path: Path, tiny_llama: Path) -> Scene:
    """A folder with the recipes, texts, prompts and pairs that the docs name."""
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    for part in ("manifests", "serving/caikit", "llm_detox/evaluation/harness"):
        shutil.copytree(ROOT / part, tmp_path / part)
    _lines(tmp_path / "texts.jsonl", [{"text": text, "toxic": toxic} for text, toxic in SENTENCES])
    _lines(tmp_path / "prompts.jsonl", [{"prompt": f"So number {one} is what these damn people"} for one in range(4)])
    comments = [f"comment {number}: {text},{int(toxic)}" for number in range(60)
                for text, toxic in SENTENCES if "," not in text]
    (tmp_path / "comments.csv").write_text("\n".join(["comment,toxic", *comments, ""]), "utf-8")
    pairs = [f"{text} {number}\tplease be quiet {number}\t\t" for number in range(8) for text, _ in SENTENCES[::2]]
    (tmp_path / "paradetox.tsv").write_text("\n".join(["toxic\tneutral1\tneutral2\tneutral3", *pairs, ""]), "utf-8")
    values = make_sources(tmp_path / "data")
    values["model"]["source"] = str(tiny_llama)
    values["scoring"]["training"]["source"] = values["data"]["texts"]["source"]
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(values), "utf-8")
    interval = {"value": 0.4, "low": 0.3, "high": 0.5}
    arms = {arm: {"mean_toxicity": interval, "toxicity_probability": interval} for arm in ("base", "dpo")}
    report = {"name": "small", "verdict": {"verdict": "pass"}, "arms": arms}
    (tmp_path / "report.json").write_text(json.dumps(report), "utf-8")
    return Scene(tmp_path, {"MODEL": str(tiny_llama), "R": "small.yaml", "RUN/report.json": "report.json"})


@pytest.fixture
def servers() -> Iterator[dict[str, str]]:
    """The addresses of the docs -> small servers that answer there."""
    with ExitStack() as stack:
        rest = stack.enter_context(answering.http_server(answering.caikit(SAID)))
        chat = stack.enter_context(answering.http_server(answering.openai(SAID)))
        yield {"http://127.0.0.1:8080": rest, "http://127.0.0.1:8000": chat, "http://127.0.0.1:8001": chat}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, scene: Scene) -> Run:
    """Runs a `llm-detox` command in the scene, in this process; gives its exit code."""
    from llm_detox.cli import app

    def run_here(words: Sequence[str]) -> int:
        monkeypatch.chdir(scene.folder)
        monkeypatch.setattr(sys, "argv", list(words))
        monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\n"))
        return app(args=list(words[1:]), standalone_mode=False) or 0

    return run_here


def _lines(path: Path, records: Sequence[object]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
