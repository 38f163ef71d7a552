"""Whether a command would be understood: by the parser that reads it, without running it."""

from __future__ import annotations

import argparse
import ast
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import typer
from typer.main import get_command

from llm_detox.recipe.files import load_recipe
from tests.docs.commands import ROOT, Command


def parse(command: Command) -> None:
    """Raises where the command cannot be understood, or names a file of the project that is not there."""
    words = command.words
    assert not re.search(r"\bshared/(?!data/)", command.text)
    _recipe(words)
    program = Path(words[0]).name
    if program == "llm-detox":
        from llm_detox.cli import app

        _typer(app, words[1:])
    elif program == "make":
        expanded(words[1:])
    elif program.startswith("python") and words[1:2] == ["-m"]:
        _module(words[2], words[3:])
    elif program in ("kubectl", "oc") and "-f" in words:
        assert (ROOT / words[words.index("-f") + 1]).exists()
    elif program == "source":
        assert (ROOT / words[-1]).exists()
    elif program == "build":
        targets = [path.read_text("utf-8") for path in (ROOT / "images").glob("Containerfile.*")]
        assert all(re.search(rf"^FROM .* AS {word}$", "\n".join(targets), re.M) for word in words[1:])


def options_exist(command: Command) -> None:
    """Of a command that a sentence names: its subcommand, its target or its module, and the options that it shows."""
    words = command.words
    if words[0] == "make":
        expanded([word for word in words[1:] if "..." not in word])
    elif words[0] == "llm-detox":
        from llm_detox.cli import app

        _known(get_command(app), words[1:])
    elif words[2] == "pipelines":
        from pipelines.__main__ import app as pipelines_app

        _known(get_command(pipelines_app), words[3:])
    else:
        parser = benchmark_parser(words[2])
        known = {option for action in parser._actions for option in action.option_strings}
        assert {word.split("=")[0] for word in words if word.startswith("--")} <= known


def expanded(words: list[str]) -> str:
    """What make would do. Installing is taken as done."""
    done = [f"--old-file={where}/.installed" for where in (".venv", ".venv-caikit", ".torch", ".venv/browser")]
    run = subprocess.run(["make", "--dry-run", "--no-print-directory", *done, *words], cwd=ROOT, text=True,
                         capture_output=True, check=False, env={**os.environ, "MAKEFLAGS": ""})
    assert run.returncode == 0, run.stderr
    return run.stdout


def benchmark_parser(module: str) -> argparse.ArgumentParser:
    """The parser of a benchmark, from its source: what it measures need not be imported."""
    path = ROOT / module.replace(".", "/")
    source = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
    tree = ast.parse(source.read_text("utf-8"))
    names: dict[str, Any] = {"__doc__": ast.get_docstring(tree)}
    givers = {_name(target): node for node in tree.body for target in _given(node)}
    for node in ast.walk(tree):
        code = ast.unparse(node) if isinstance(node, ast.Assign | ast.Expr) else ""
        if code.startswith(("parser = argparse.", "parser.add_argument(")):
            _run(node, names, givers)
    parser: argparse.ArgumentParser = names["parser"]
    return parser


def _run(node: ast.AST, names: dict[str, Any], givers: dict[str, ast.stmt]) -> None:
    """Run a statement, and before it the imports and constants of its module that it needs."""
    needed = {one.id for one in ast.walk(node) if isinstance(one, ast.Name)} - set(names)
    for name in sorted(needed & set(givers)):
        names[name] = None  # on its way
        _run(givers[name], names, givers)
    exec(ast.unparse(node), names)  # noqa: S102 - the project's own code


def _given(node: ast.stmt) -> list[Any]:
    """What a statement of a module gives a name to."""
    if isinstance(node, ast.AnnAssign):
        return [node.target]
    found = getattr(node, "targets", getattr(node, "names", []))
    return [one for target in found for one in getattr(target, "elts", [target])]


def _name(target: Any) -> str:
    return target.asname or target.name if isinstance(target, ast.alias) else ast.unparse(target)


def _module(module: str, words: list[str]) -> None:
    if module == "pipelines":
        from pipelines.__main__ import app

        _typer(app, words, {"LLM_DETOX_PIPELINE_HOST": "https://pipelines.example"})
    elif module.startswith("benchmarks."):
        benchmark_parser(module).parse_args(words)
    elif module == "pytest":
        assert all((ROOT / word).exists() for word in words if word.startswith("tests"))
    else:
        known = ("pip", "venv", "ipykernel", "serving.engine", "serving.guard")
        assert module in known, f"nothing here parses {module}"


def _typer(app: typer.Typer, words: list[str], environment: dict[str, str] | None = None) -> None:
    before = dict(os.environ)
    os.environ.update(environment or {})
    try:
        group: Any = get_command(app)
        context = group.make_context(group.name, list(words))
        while hasattr(group, "resolve_command"):
            name, command, rest = group.resolve_command(context, [*context._protected_args, *context.args])
            context, group = command.make_context(name, rest, parent=context), command
    finally:
        os.environ.clear()
        os.environ.update(before)


def _known(group: Any, words: list[str]) -> None:
    while hasattr(group, "commands") and words and not words[0].startswith("-"):
        assert words[0] in group.commands, f"there is no {words[0]}"
        group, words = group.commands[words[0]], words[1:]
    known = {option for parameter in group.params for option in parameter.opts + parameter.secondary_opts}
    assert {word.split("=")[0] for word in words if word.startswith("--")} <= known | {"--help"}


def _recipe(words: list[str]) -> None:
    """The recipe that the command names, with its changes, is valid as a whole."""
    if "--recipe" not in words:
        return
    path = words[words.index("--recipe") + 1]
    if path.startswith("recipes/"):
        load_recipe(ROOT / path, [words[at + 1] for at, word in enumerate(words) if word == "--set"])


def kustomized(folder: Path) -> str:
    """What `kubectl apply -k` would send."""
    kubectl = shutil.which("kubectl", path=f"{ROOT / '.venv/bin'}{os.pathsep}{os.environ['PATH']}")
    assert kubectl, "kubectl comes with the test requirements"
    return subprocess.run([kubectl, "kustomize", str(folder)], capture_output=True, text=True, check=True).stdout
