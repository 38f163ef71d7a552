"""A scorer, a rephraser, engines and a recipe are added by the very files and commands of docs/extending.md."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llm_detox.errors import DetoxError, UsageError
from llm_detox.plugins import load_plugin
from llm_detox.processes import free_ports
from llm_detox.recipe.files import load_recipe
from tests.docs.commands import ROOT, blocks, commands
from tests.docs.conftest import Run, Scene
from tests.helpers import answering
from tests.serving.running import wait_for

PAGE = ROOT / "docs/extending.md"
COMMANDS = commands(PAGE)


def command(*parts: str) -> list[str]:
    """The words of the one command of the page with these parts."""
    [found] = [one.words for one in COMMANDS if all(part in one.text for part in parts)]
    return found


def write_files(folder: Path) -> None:
    """The files of the page, each named in its first line."""
    for kind in ("toml", "python", "yaml"):
        for block in blocks(PAGE, kind):
            path = folder / block.partition("\n")[0].removeprefix("# ")
            path.parent.mkdir(exist_ok=True)
            path.write_text(block, "utf-8")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page's package, installed by its command, but into a folder of its own."""
    folder = tmp_path_factory.mktemp("additions")
    write_files(folder)
    words = command("pip install")
    assert words[0] == ".venv/bin/python"
    subprocess.run([sys.executable, *words[1:], "--quiet", "--disable-pip-version-check", "--target",
                    str(folder / "installed")], cwd=folder, check=True)
    return folder / "installed"


@pytest.fixture
def additions(installed: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The package in this process, and in those that it starts."""
    monkeypatch.syspath_prepend(str(installed))
    monkeypatch.setenv("PYTHONPATH", f"{installed}{os.pathsep}{ROOT}")
    yield
    for name in ("my_scorer", "my_rephraser", "my_engine", "my_backend"):
        sys.modules.pop(name, None)


def records(scene: Scene, words: list[str]) -> list[dict[str, Any]]:
    path = scene.folder / words[words.index("--output") + 1] / "records.jsonl"
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_every_command_of_the_page_is_run_here() -> None:
    used = [command(*parts) for parts in (
        ("pip install",), ("by-wordlist",), ("--guard",), ("softened",), ("echoed",), ("serving.engine",), ("--fmaas",),
        ("recipe validate",), ("recipe rehearse",), ("pipelines run",))]
    assert sorted(map(str, used)) == sorted(str(one.words) for one in COMMANDS)


@pytest.mark.usefixtures("additions")
def test_the_scorer_of_the_page_trains_and_accepts(scene: Scene, run: Run) -> None:
    words = scene.filled(command("by-wordlist"))
    assert run(words) == 0
    found = records(scene, words)
    assert [one["scores"]["toxicity_before"] for one in found] == [0.9, 0.0, 0.9, 0.0]
    assert {one["action"] for one in found if one["scores"]["toxicity_before"] == 0} == {"kept"}


@pytest.mark.usefixtures("additions")
def test_the_scorer_of_the_page_guards(scene: Scene, run: Run, servers: dict[str, str]) -> None:
    words = command("--guard")
    assert run([servers.get(word, word) for word in words]) == 0
    with answering.http_server(answering.caikit([" an", " idiot"])) as rude:
        assert run([word.replace("http://127.0.0.1:8080", rude) for word in words]) == 3


@pytest.mark.usefixtures("additions")
def test_the_rephraser_of_the_page_is_asked_first(scene: Scene, run: Run) -> None:
    words = [*scene.filled(command("softened")), "--set", "scoring.training.kind=plugin:wordlist"]
    assert run(words) == 0
    tried = [one["tried"][0] for one in records(scene, words) if "tried" in one]
    # It knows a word of the first rude sentence, and none of the second.
    assert [(one["method"], one["candidates"]) for one in tried] == [("plugin:softer", 1), ("plugin:softer", 0)]


@pytest.mark.usefixtures("additions")
def test_the_engine_of_the_page_draws_an_evaluations_continuations(scene: Scene, run: Run) -> None:
    words = scene.filled(command("echoed"))
    assert run(words) == 0
    folder = scene.folder / words[words.index("--output") + 1]
    first = json.loads((folder / "generations.jsonl").read_text("utf-8").splitlines()[0])
    assert "these damn people" in json.dumps(first)
    assert json.loads((folder / "report.json").read_text("utf-8"))["prompts"] == 4


@pytest.mark.usefixtures("additions")
def test_the_back_end_of_the_page_is_loaded_by_the_server(tiny_llama: Path) -> None:
    from serving.engine.jobs import Job, Update
    from serving.engine.loading import load
    from serving.engine.metrics import Metrics
    from serving.engine.settings import parse
    from serving.engine.validation import Parameters

    words = command("serving.engine")
    served = load(parse([word.replace("MODEL", str(tiny_llama)) for word in words[3:]], {}), Metrics())
    news: list[Update] = []
    served.engine.submit([Job([40, 41], Parameters(max_new_tokens=4, generated_tokens=True), False, news.append)])
    assert [one.token for one in news[-1].tokens] == [40, 41, 40, 41]
    assert served.engine.refusal(Parameters(temperature=1.0))


@pytest.mark.slow
@pytest.mark.usefixtures("additions")
def test_the_back_end_of_the_page_serves(scene: Scene, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    port, http = (str(one) for one in free_ports(2))
    ports = {"8033": port, "3000": http}
    words = [ports.get(word, word) for word in scene.filled(command("serving.engine"))]
    with subprocess.Popen([sys.executable, *words[1:]], stderr=subprocess.PIPE, cwd=ROOT) as server:
        try:
            ask = [word.replace("8033", port) for word in command("--fmaas")]
            wait_for(lambda: _answers(run, ask), 120, every=1)
        finally:
            server.terminate()
    assert "Once upon a timeOnce upon a time" in capsys.readouterr().out


def _answers(run: Run, words: list[str]) -> bool:
    try:
        return run(words) == 0
    except DetoxError:  # it starts
        return False


def test_the_recipe_of_the_page_is_valid(scene: Scene, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    write_files(scene.folder)
    assert run(command("recipe validate")) == 0
    assert "'my-recipe' is valid" in capsys.readouterr().out


@pytest.mark.slow
def test_the_recipe_of_the_page_rehearses_and_its_pipeline_is_the_one_that_runs(scene: Scene, run: Run) -> None:
    write_files(scene.folder)
    assert run(command("recipe rehearse")) == 0
    assert re.match(r"python -m pipelines run --recipe my-recipe.yaml$", " ".join(command("pipelines run")))


@pytest.mark.parametrize("change", [
    "scoring.training.kind=wordlist", "detoxify.methods=[softer]", "evaluation.engine=echo"])
def test_a_name_without_plugin_is_refused_in_one_line(change: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_recipe(ROOT / "recipes/smollm2-demo.yaml", [change])
    assert len([line for line in str(caught.value).splitlines() if change.partition("=")[0] in line]) == 1


def test_a_plugin_that_is_not_installed_is_named_with_those_that_are() -> None:
    with pytest.raises(DetoxError, match=r"no installed package provides 'nobody' \(llm_detox.scorers; there: "):
        load_plugin("llm_detox.scorers", "plugin:nobody")


@pytest.mark.usefixtures("additions")
def test_a_plugin_that_cannot_be_imported_is_told(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "my_scorer", None)
    with pytest.raises(DetoxError, match="cannot be imported"):
        load_plugin("llm_detox.scorers", "wordlist")
