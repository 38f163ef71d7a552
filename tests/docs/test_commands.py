"""Every command in README and docs: run with small models, or parsed where the table says why it is not run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import llm_detox
from tests.docs.commands import NOT_RUN, ROOT, Command, blocks, commands, inline, pages, reason_not_to_run
from tests.docs.conftest import Run, Scene
from tests.docs.parsing import expanded, kustomized, options_exist, parse
from tests.helpers.tiny import save_tiny_chat_llama
from tests.serving.running import wait_for

OWN_TEST = "docs/extending.md"  # tests/docs/test_extending.py
COMMANDS = [command for page in pages() for command in commands(page)]
RUN = [command for command in COMMANDS if reason_not_to_run(command) is None and command.page != OWN_TEST]
ASKING = re.compile(r"^llm-detox (ask|chat|bench serve) ")
AT_ONCE = [one for one in RUN if ASKING.match(one.text) and not re.search(r"--grpc|--guard|bench", one.text)]
SERVED = [one for one in RUN if ASKING.match(one.text) and one not in AT_ONCE and "--openai" not in one.text]
JUDGED = [one for one in RUN if "--openai" in one.text and "--guard" in one.text]
WITH_MODELS = [one for one in RUN if re.match(r"llm-detox (detoxify|train-\w+|evaluate) ", one.text)]
READING = [one for one in RUN if re.match(r"llm-detox (recipe (validate|show)|doctor|quickstart) ", one.text)]
RENDERING = [one for one in RUN if one.text.startswith("kubectl apply -k")]
CORPUS = [one for one in RUN if one.text.startswith("llm-detox clean-corpus ")]
SERVE = [one for one in RUN if one.text.startswith("llm-detox serve ")]


def _id(command: Command) -> str:
    return str(command)


def test_every_command_has_its_test_and_every_reason_a_command() -> None:
    covered = [*AT_ONCE, *SERVED, *JUDGED, *WITH_MODELS, *READING, *RENDERING, *CORPUS, *SERVE]
    left = [str(one) for one in RUN if one not in covered and not re.match(r"source |cp |python docs/", one.text)]
    assert not left, "run these in tests/docs/test_commands.py, or say in tests/docs/commands.py why not"
    assert len({one.page for one in COMMANDS}) > 8, "the pages are read"
    assert not [pattern for pattern in NOT_RUN if not any(re.search(pattern, one.text) for one in COMMANDS)]


@pytest.mark.parametrize("command", COMMANDS, ids=_id)
def test_a_command_is_understood(command: Command) -> None:
    parse(command)


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_what_a_sentence_names_exists(page: Path) -> None:
    for command in inline(page):
        options_exist(command)


def test_a_command_that_has_rotted_is_found() -> None:
    good = next(one for one in COMMANDS if one.text.startswith("llm-detox detoxify "))
    for words in ([*good.words, "--shards", "0/8"], ["llm-detox", "detox"], ["make", "test-all"],
                  ["python", "-m", "benchmarks.train_speed", "--step", "x"],
                  ["llm-detox", "sft", "--recipe", "recipes/smollm2-demo.yaml", "--set", "training.lora.rank=8"]):
        with pytest.raises(BaseException, match=r"\w"):
            parse(replace(good, words=words))


def test_make_demo_and_its_arguments_are_those_of_the_pipelines() -> None:
    for arguments in ("", "--fresh", "--keep-serving"):
        [line] = [line for line in expanded(["demo", f"ARGS={arguments}"]).splitlines() if "-m pipelines run" in line]
        parse(Command("Makefile", 0, line, line.split()))


@pytest.mark.parametrize("command", READING, ids=_id)
def test_a_command_about_a_recipe_runs(command: Command, run: Run, scene: Scene,
                                       capsys: pytest.CaptureFixture[str]) -> None:
    code = run(scene.filled(command.words))
    assert code == 0 or (command.words[1] == "doctor" and "MISSING" in capsys.readouterr().out)


@pytest.mark.parametrize("command", AT_ONCE, ids=_id)
def test_a_command_that_asks_prints_the_answer(command: Command, run: Run, scene: Scene, servers: dict[str, str],
                                               capsys: pytest.CaptureFixture[str]) -> None:
    assert run(_at(servers, scene.filled(command.words))) == 0
    assert "a fine day" in capsys.readouterr().out


@pytest.mark.parametrize("command", RENDERING, ids=_id)
def test_what_is_applied_renders(command: Command, scene: Scene) -> None:
    connection = scene.folder / "manifests/connection"
    (connection / "connection.env.example").rename(connection / "connection.env")
    assert "kind:" in kustomized(scene.folder / command.words[-1])


def test_the_rest_of_the_readme_and_the_checklist_runs(scene: Scene) -> None:
    for command in RUN:
        words = scene.filled(command.words)
        if words[0] == "cp":
            subprocess.run(words, cwd=scene.folder, check=True)
            assert (scene.folder / words[-1]).exists()
        elif words[1] == "docs/picture.py":
            done = subprocess.run([sys.executable, *words[1:]], cwd=scene.folder, check=True, capture_output=True)
            assert done.stdout.startswith(b"<svg")


def test_versions_in_commands_are_this_one() -> None:
    for command in COMMANDS:
        found = re.findall(r"(?:llm_detox-|/\$image:|/workbench-python:|--sign v)(\d+\.\d+\.\d+)", command.text)
        assert set(found) <= {llm_detox.__version__}, command


@pytest.mark.parametrize("page", [page for page in pages() if blocks(page, "python")], ids=lambda page: page.name)
def test_python_in_the_docs_compiles_and_imports_what_there_is(page: Path) -> None:
    import ast

    for code in blocks(page, "python"):
        if code.startswith("# my-additions/"):
            continue  # tests/docs/test_extending.py runs these
        tree = compile(code, page.name, "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                exec(ast.unparse(node), {})  # noqa: S102 - an import of the project's own page


@pytest.mark.slow
@pytest.mark.parametrize("command", WITH_MODELS, ids=_id)
def test_a_step_runs_on_a_tiny_model(command: Command, run: Run, scene: Scene) -> None:
    words = scene.filled(command.words)
    assert run(words) == 0
    assert (scene.folder / words[words.index("--output") + 1] / "manifest.json").exists()


@pytest.mark.slow
def test_a_corpus_is_cleaned(scene: Scene, run: Run) -> None:
    for number, command in enumerate(CORPUS):
        words = [f"cleaned-{number}" if word == "cleaned" else word for word in scene.filled(command.words)]
        assert run([*words, *([] if "--recipe" in words else ["--recipe", "small.yaml"])]) == 0
        assert (scene.folder / f"cleaned-{number}/texts.jsonl").exists() == ("--dry-run" not in words)


@pytest.mark.slow
@pytest.mark.parametrize("command", JUDGED, ids=_id)
def test_a_judge_guards_an_answer(command: Command, run: Run, scene: Scene, servers: dict[str, str]) -> None:
    assert run(_at(servers, scene.filled(command.words))) in (0, 3)


@pytest.mark.slow
def test_what_serve_serves_is_asked_by_all_the_commands(scene: Scene, run: Run) -> None:
    [serve] = SERVE
    # Room for the length of an answer that `chat` asks for.
    scene = Scene(scene.folder, {"MODEL": str(save_tiny_chat_llama(scene.folder / "chat"))})
    log = scene.folder / "serve.out"
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [sys.executable, "-m", "llm_detox.cli", *scene.filled(serve.words)[1:], "--rest-port", "0", "--grpc-port",
             "0", "--json"], stdout=sink, stderr=subprocess.STDOUT, cwd=ROOT)
    try:
        line = wait_for(lambda: re.search(r'^\{"model_id".*\}$', log.read_text("utf-8"), re.M) or process.poll(), 300)
        assert not isinstance(line, int), log.read_text("utf-8")
        urls = json.loads(line[0])
        places = {"http://127.0.0.1:8080": urls["rest"], "127.0.0.1:8085": urls["grpc"].removeprefix("grpc://")}
        for command in [*SERVED, *(one for one in AT_ONCE if "--url" in one.text)]:
            words = ["my-model" if word == "llm-detox" and number else word
                     for number, word in enumerate(_at(places, scene.filled(command.words)))]
            assert run(words) in ((0, 3) if "--guard" in words else (0,)), command
    finally:
        process.terminate()
        process.wait(60)


def _at(places: dict[str, str], words: list[str]) -> list[str]:
    """The words with the addresses of the docs replaced."""
    for said, real in places.items():
        words = [word.replace(said, real) for word in words]
    return words
