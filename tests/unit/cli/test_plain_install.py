"""Without the extras every command works or names the package that it lacks and the extra that has it."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import typer

from llm_detox.cli import app
from llm_detox.errors import _EXTRAS, DetoxError, optional_packages

ROOT = Path(__file__).parents[3]
RECIPE = "recipes/smollm2-demo.yaml"
URL = "s3://bucket/model"
# What each command is given: enough to begin its work.
CALLS = {
    "data": f"--recipe {RECIPE} --output out", "detoxify": f"--recipe {RECIPE} --input lines.jsonl --output out",
    "sft": f"--recipe {RECIPE} --input lines.jsonl --output out",
    "dpo": f"--recipe {RECIPE} --adapter folder --records lines.jsonl --prompts lines.jsonl --output out",
    "evaluate": f"--recipe {RECIPE} --model folder --prompts lines.jsonl --output out",
    "compare": "folder folder", "compare-ui": "http://127.0.0.1:1/a http://127.0.0.1:1/b",
    "report": f"--recipe {RECIPE} --arm base=folder --output out", "convert": "--model folder --output out",
    "publish": f"folder {URL}", "deploy": f"--recipe {RECIPE} --input {URL} --output out",
    "smoke": f"--recipe {RECIPE} --input folder --output out", "stop": "folder", "serve": "folder",
    "ask": "--url http://127.0.0.1:1 hello", "chat": "--grpc 127.0.0.1:1", "doctor": f"--recipe {RECIPE}",
    "train-scorer": "--input lines.jsonl --output out",
    "train-experts": f"--recipe {RECIPE} --input lines.jsonl --output out",
    "train-paraphraser": f"--recipe {RECIPE} --input lines.jsonl --output out",
    "paraphrase-pairs": f"--recipe {RECIPE} --input lines.jsonl --output out",
    "judge-data": f"--recipe {RECIPE} --output out", "judge": f"--recipe {RECIPE} --input lines.jsonl --output out",
    "stop-hate": f"--recipe {RECIPE} --output out", "recipe show": RECIPE, "recipe validate": RECIPE,
    "recipe schema": "", "recipe reference": "", "recipe rehearse": RECIPE, "models list": URL,
    "models rollback": URL, "models prune": URL, "models fetch": f"{URL} out", "export verify": "folder",
    "try": "hello", "quickstart": "lines.jsonl --text text", "clean-corpus": "lines.jsonl out", "runs list": "",
    "runs show": "mine", "runs remove": "mine --yes",
    "bench serve": "--url http://127.0.0.1:1", "detector serve": "a=ngram",
}
GUARDS = [f"ask --url http://127.0.0.1:1 --guard {kind} hello" for kind in ("ngram", "bilstm", "transformers=folder",
                                                                          "attributes=folder", "judge=folder")]
RUN = """
import contextlib, io, json, sys, traceback
from llm_detox.cli import main
outcomes = {}
for call in json.load(sys.stdin):
    sys.argv = ["llm-detox", *call.split()]
    said, code = io.StringIO(), 0
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            main()
        except SystemExit as end:
            code = end.code
        except BaseException:
            traceback.print_exc()
    outcomes[call] = [code, said.getvalue()]
sys.__stdout__.write(json.dumps(outcomes))
"""


def commands(group: Any, name: str = "") -> Iterator[str]:
    for part, command in getattr(group, "commands", {}).items():
        yield from commands(command, f"{name} {part}".strip())
    if not hasattr(group, "commands"):
        yield name


def plain_packages() -> set[str]:
    """The files of what `pip install llm-detox` brings, beside the library itself."""
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"]
    names, queue = set(), [requirement_name(one) for one in wanted]
    while queue:
        name = queue.pop()
        if name not in names:
            names.add(name)
            queue += [requirement_name(one) for one in metadata.requires(name) or () if ";" not in one]
    return {path.parts[0] for name in names for path in metadata.files(name) or () if path.parts[0] != ".."}


def requirement_name(requirement: str) -> str:
    name = requirement.split(";")[0]
    for mark in "<>=!~[ (":
        name = name.split(mark)[0]
    return name.strip()


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str]]:
    """Each call's exit code and output, in one process that sees no package but those of a plain installation."""
    folder = tmp_path_factory.mktemp("plain")
    site = folder / "site"
    site.mkdir()
    packages = Path(metadata.distribution("typer").locate_file(""))
    for name in plain_packages():
        (site / name).symlink_to(packages / name)
    (site / "llm_detox").symlink_to(ROOT / "llm_detox")
    work = folder / "work"
    (work / "folder").mkdir(parents=True)
    (work / "lines.jsonl").write_text('{"id": "1", "text": "a fine day", "toxic": true, "prompt": "a day"}\n', "utf-8")
    (work / "recipes").symlink_to(ROOT / "recipes")
    calls = [f"{name} {words}".strip() for name, words in CALLS.items()] + GUARDS
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "LLM_DETOX_"))}
    done = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path.insert(0, {str(site)!r})\n{RUN}"], input=json.dumps(calls),
        capture_output=True, text=True, timeout=300, cwd=work, env={**environment, "XDG_CACHE_HOME": str(folder)})
    assert done.returncode == 0, done.stderr
    return {call: (code, said) for call, (code, said) in json.loads(done.stdout).items()}


def imported_packages() -> set[str]:
    files = [path.read_text("utf-8") for path in (ROOT / "llm_detox").rglob("*.py")]
    nodes = [node for text in files for node in ast.walk(ast.parse(text))]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level}
    return {name.partition(".")[0] for name in names}


def test_every_command_is_among_those_that_are_tried() -> None:
    assert set(commands(typer.main.get_command(app))) == set(CALLS)


def test_no_command_ends_in_a_traceback(outcomes: dict[str, tuple[int, str]]) -> None:
    assert {call: said for call, (_, said) in outcomes.items() if "Traceback" in said} == {}


@pytest.mark.parametrize(("call", "extra"), [
    ("detoxify", "workbench"), ("sft", "workbench"), ("evaluate", "workbench"), ("convert", "workbench"),
    ("recipe rehearse", "workbench"), ("bench serve", "client"), ("ask --url http://127.0.0.1:1 hello", "client"),
    ("chat", "client"), ("models list", "storage"), ("compare-ui", "ui"), ("detector serve", "ui"),
    ("ask --url http://127.0.0.1:1 --guard ngram", "workbench"), ("serve", "workbench")])
def test_what_is_missing_is_named_with_its_extra(outcomes: dict[str, tuple[int, str]], call: str, extra: str) -> None:
    (code, said), = [outcome for one, outcome in outcomes.items() if f"{one} ".startswith(f"{call} ")][:1]
    assert code == 1
    assert "is not installed" in said
    assert f"pip install 'llm-detox[{extra}]'" in said


def test_what_needs_no_extra_works_without(outcomes: dict[str, tuple[int, str]]) -> None:
    for call in ("recipe validate", "recipe show", "recipe schema", "recipe reference", "runs list"):
        assert [code for one, (code, _) in outcomes.items() if one.startswith(call)] == [0], call


def test_every_package_that_the_library_imports_is_of_an_extra_that_there_is() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert set(_EXTRAS.values()) <= set(project["optional-dependencies"])
    third = imported_packages() - sys.stdlib_module_names - {"llm_detox", "_typeshed"}
    assert third - plain_packages() - set(_EXTRAS) == set()


def test_a_missing_module_of_our_own_stays_a_fault() -> None:
    with pytest.raises(ModuleNotFoundError), optional_packages():
        import llm_detox.nowhere  # noqa: F401
    with pytest.raises(DetoxError, match="nobody_has_this is not installed") as caught, optional_packages():
        import nobody_has_this.part  # noqa: F401
    assert caught.value.remedy == "pip install nobody_has_this"
