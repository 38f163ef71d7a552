"""No key of the recipe and no option of a command does nothing."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from pydantic import BaseModel
from typer.testing import CliRunner

from llm_detox.cli import app
from llm_detox.recipe import Recipe, deploy
from tests.conftest import REPOSITORY
from tests.helpers.section_reads import reads, unread

SCHEMA = sorted((REPOSITORY / "llm_detox" / "recipe").glob("*.py"))
# Checking a recipe, making a small one of it and looking whether it could run use its keys, and do none of its steps.
NO_STEPS = {"recipe", "rehearsal", "doctor"}
STEPS = [path for top in ("llm_detox", "pipelines", "components") for path in sorted((REPOSITORY / top).rglob("*.py"))
         if path.relative_to(REPOSITORY).parts[1] not in NO_STEPS]
COMMANDS = [*sorted((REPOSITORY / "llm_detox" / "cli").glob("[!_]*.py")), REPOSITORY / "pipelines" / "__main__.py"]


@pytest.fixture(scope="module")
def steps_read() -> set[tuple[str, str]]:
    return reads(STEPS, SCHEMA)


def test_every_key_of_the_recipe_is_read_by_a_step(steps_read: set[tuple[str, str]]) -> None:
    assert unread(Recipe, steps_read) == []


def test_a_key_that_no_step_reads_is_seen_though_others_of_its_name_are_read(
        steps_read: set[tuple[str, str]]) -> None:
    class KserveSection(deploy.KserveSection):
        count: int = 1  # a name that other sections have

    class DeploySection(deploy.DeploySection):
        kserve: KserveSection = KserveSection()
        never: str = ""

    assert unread(DeploySection, steps_read) == ["DeploySection.never", "KserveSection.count"]


@pytest.mark.parametrize("code", [
    "def f(settings: Outer) -> int:\n    return settings.inner.key",
    "def f(settings: Outer) -> int:\n    a, b = 1, settings.inner\n    return [one.key for one in (b,)][0]",
    "def f(many: list[Inner]) -> int:\n    for n, one in enumerate(many):\n        return one.key",
    "class C:\n    def __init__(self, s: Outer) -> None:\n        self.s = s.inner\n"
    "    def g(self) -> int:\n        return self.s.key",
    "def made() -> Inner | None: ...\ndef f() -> int:\n    return made().key",
])
def test_a_read_is_followed_through_names_loops_objects_and_calls(code: str, tmp_path: Path) -> None:
    schema = "class Inner:\n    key: int\nclass Outer:\n    inner: Inner\n"
    (tmp_path / "schema.py").write_text(schema, "utf-8")
    for text, is_read in ((code, True), (code.replace(".key", ".other"), False)):
        (tmp_path / "code.py").write_text(text, "utf-8")
        assert (("Inner", "key") in reads([tmp_path / "code.py"], [tmp_path / "schema.py"])) == is_read


def options(path: Path) -> list[str]:
    """Parameters of a file's functions that their bodies do not name."""
    found = []
    for function in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(function, ast.FunctionDef):
            named = {node.id for line in function.body for node in ast.walk(line) if isinstance(node, ast.Name)}
            found += [f"{path.stem}.{function.name}: {one.arg}" for one in (
                *function.args.args, *function.args.kwonlyargs) if one.arg not in named]
    return found


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.stem)
def test_every_option_of_a_command_is_used(path: Path) -> None:
    assert options(path) == []


def test_an_option_that_is_not_used_is_seen(tmp_path: Path) -> None:
    (tmp_path / "steps.py").write_text("def convert(model: str, recipe: str) -> None:\n    print(model)\n", "utf-8")
    assert options(tmp_path / "steps.py") == ["steps.convert: recipe"]


@pytest.mark.parametrize(("arguments", "told"), [
    (["convert", "--output", "out"], "which model?"),
    (["convert", "--output", "out", "--set", "seed=1"], "there is none"),
    (["publish", "folder"], "where to?"),
    (["publish", "folder", "s3://bucket/x", "--set", "seed=1"], "there is none")])
def test_a_step_without_its_recipe_says_what_it_lacks(arguments: list[str], told: str) -> None:
    result = CliRunner().invoke(app, arguments)
    assert told in str(result.exception)


def test_convert_takes_the_recipes_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []

    def convert(*, model: str, **_: object) -> dict[str, object]:
        taken.append(model)
        return {}

    monkeypatch.setattr("llm_detox.export.convert", convert)
    fixed = ["convert", "--recipe", str(REPOSITORY / "recipes" / "smollm2-demo.yaml"), "--output", str(tmp_path)]
    for more in ([], ["--model", "folder"], ["--set", "model.source=own"]):
        CliRunner().invoke(app, [*fixed, *more], catch_exceptions=False)
    assert taken[1:] == ["folder", "own"]
    assert taken[0] not in taken[1:]


def test_a_schema_is_walked_to_its_end() -> None:
    class Inner(BaseModel):
        key: int = 0

    class Outer(BaseModel):
        many: list[Inner] = []

    assert unread(Outer, set()) == ["Outer.many", "Inner.key"]
