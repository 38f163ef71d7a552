"""Names in the docs: every module, file, option and recipe key that a page mentions exists."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest
import typer
from pydantic import BaseModel
from typer.main import get_command

from llm_detox.recipe import Recipe
from tests.docs.commands import ROOT, blocks, pages
from tests.docs.parsing import benchmark_parser

TOPS = ("llm_detox", "components", "pipelines", "serving", "benchmarks")
FOLDERS = (*TOPS, "manifests", "images", "recipes", "requirements", "notebooks", "docs", "tests")
DOTTED = re.compile(rf"(?<![\w./-])(?:{'|'.join(TOPS)})(?:\.(?!md\b)\w+)+")
FILE = re.compile(rf"(?<![\w./-])(?:\.\./)?(?:{'|'.join(FOLDERS)})/[\w./*-]+")
CODE = re.compile(r"`([^`\n]+)`")
NAME_IN_FILE = re.compile(r"`(\w+)` \(`([\w/.]+\.py)`\)")
ELSEWHERE = {"--no-deps", "--require-hashes", "--target",  # pip's
             "--metadata", "--gen_kwargs"}  # of lm-evaluation-harness
MADE_BY_THE_READER = {"manifests/connection/connection.env", "manifests/components/custom-ca/ca-bundle.crt"}


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_modules_exist(page: Path) -> None:
    named = set(DOTTED.findall(page.read_text("utf-8"))) - entry_points()
    assert not [name for name in named if not module_or_name(name)]


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_imports_of_the_examples_exist(page: Path) -> None:
    for code in blocks(page, "python"):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in TOPS:
                assert not [name for one in node.names if not module_or_name(name := f"{node.module}.{one.name}")]


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_files_exist(page: Path) -> None:
    named = {path.rstrip(".").removeprefix("../") for path in FILE.findall(page.read_text("utf-8"))}
    assert not [path for path in named - MADE_BY_THE_READER if not [*ROOT.glob(path.rstrip("/"))]]


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_options_exist(page: Path) -> None:
    named = {word.split("=")[0] for code in CODE.findall(page.read_text("utf-8")) if code.startswith("--")
             for word in code.split() if word.startswith("--")}
    assert not named - options() - ELSEWHERE


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_recipe_keys_exist(page: Path) -> None:
    known, sections = keys(), set(Recipe.model_fields)
    for code in CODE.findall(page.read_text("utf-8")):
        key = re.match(r"[a-z_]+(\.[a-z_0-9]+)+(\*|$|(?=[=:]))", code)
        if key and code.split(".")[0] in sections and not code.endswith((".md", ".yaml", ".py", ".jsonl", ".json")
                ) and not key[0].endswith(".gguf"):
            assert [one for one in known if re.fullmatch(key[0].replace("*", ".*"), one)], code


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_a_name_with_its_file_is_defined_there(page: Path) -> None:
    for name, path in NAME_IN_FILE.findall(page.read_text("utf-8")):
        assert name in defined(ROOT / path), f"{name} is not in {path}"


def test_the_map_has_all_rooms_in_their_order() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8").partition("## The map")[2].partition("\n## ")[0]
    tree = ast.parse((ROOT / "tests/unit/test_architecture.py").read_text("utf-8"))
    [order] = [ast.literal_eval(node.value) for node in tree.body if isinstance(node, ast.Assign)
               and ast.unparse(node.targets[0]) == "ROOMS"]
    rooms = [name for row in re.findall(r"^\| (`.*?`) \|", text, re.M) for name in CODE.findall(row)]
    assert tuple(rooms) == order


def test_names_that_do_not_exist_are_seen() -> None:
    assert not module_or_name("llm_detox.rephrase.workshop")
    assert not module_or_name("llm_detox.rephrase.chain.Link")
    assert module_or_name("llm_detox.rephrase.chain.Chain")
    assert FILE.findall("see `llm_detox/deploy/kserve.py`.") == ["llm_detox/deploy/kserve.py"]
    assert "--shard" in options()
    assert "--shards" not in options()
    assert {"detoxify.paraphrase.also", "data.texts.benign.count"} <= keys()


@cache
def entry_points() -> set[str]:
    """The groups under which other packages bring scorers and the like."""
    texts = (path.read_text("utf-8") for top in ("llm_detox", "serving") for path in (ROOT / top).rglob("*.py"))
    return {group for text in texts for group in re.findall(r'load_plugin\("([\w.]+)"', text)}


def module_or_name(dotted: str) -> bool:
    """Whether it is a module or a package, or what one of them defines at its top."""
    path = ROOT.joinpath(*dotted.split("."))
    if path.with_suffix(".py").exists() or path.is_dir():
        return True
    holder = path.parent / "__init__.py" if path.parent.is_dir() else path.parent.with_suffix(".py")
    return holder.exists() and path.name in defined(holder)


def defined(path: Path) -> set[str]:
    """The names that a module has at its top."""
    names: set[str] = set()
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}
    return names


@cache
def options() -> set[str]:
    """The options of all commands, pipelines, benchmarks and servers."""
    from llm_detox.cli import app
    from pipelines.__main__ import app as pipelines_app

    benchmarks = [path for path in (ROOT / "benchmarks").rglob("*.py") if "ArgumentParser" in path.read_text("utf-8")]
    parsers = [benchmark_parser(".".join(path.relative_to(ROOT).with_suffix("").parts)) for path in benchmarks]
    found = {option for parser in parsers for action in parser._actions for option in action.option_strings}
    for group in (app, pipelines_app):
        found |= _typer_options(group)
    servers = (path.read_text("utf-8") for path in (ROOT / "serving").rglob("*.py"))
    return found | {option for text in servers for option in re.findall(r"\"(--[\w-]+)\"", text)}


def _typer_options(app: typer.Typer) -> set[str]:
    found: set[str] = set()
    commands: list[Any] = [get_command(app)]
    while commands:
        command = commands.pop()
        commands += getattr(command, "commands", {}).values()
        found |= {option for one in command.params for option in [*one.opts, *one.secondary_opts]}
    return found


@cache
def keys() -> set[str]:
    """Every key of a recipe and every section, with its path; lists of sections without index."""
    found: set[str] = set()
    waiting: list[tuple[str, type[BaseModel]]] = [("", Recipe)]
    while waiting:
        path, section = waiting.pop()
        for name, field in section.model_fields.items():
            key = f"{path}.{name}".lstrip(".")
            found.add(key)
            waiting += [(key, inner) for inner in _sections(field.annotation) if key.count(name) < 2]
    return found


def _sections(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for part in get_args(annotation) for section in _sections(part)]
