"""The names of the files that steps hand on stand once; typed values are written and read back."""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from llm_detox.runs import artifacts
from llm_detox.runs.artifacts import (
    ARMS,
    OPTIONAL,
    DataFolder,
    File,
    Folder,
    ModelFolder,
    Number,
    TrainedFolder,
    plain,
    read_json,
    write_json,
)

ROOT = Path(__file__).parents[3]
OF_OTHER_LIBRARIES = ModelFolder  # Hugging Face's names, which others know too


def names() -> set[str]:
    folders = [kind for kind in vars(artifacts).values()
               if isinstance(kind, type) and issubclass(kind, Folder) and kind is not OF_OTHER_LIBRARIES]
    return {file.name for kind in folders for file in vars(kind).values() if isinstance(file, File)}


def literals(path: Path) -> Iterator[str]:
    """The texts in a module that are no docstrings."""
    tree = ast.parse(path.read_text("utf-8"))
    documented = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    yield from (node.value for node in ast.walk(tree)
                if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documented)


def test_a_file_is_a_name_on_its_kind_of_folder_and_a_path_on_a_folder(tmp_path: Path) -> None:
    assert DataFolder.texts == "texts.jsonl"
    assert DataFolder(tmp_path).texts == tmp_path / "texts.jsonl"


def test_a_folder_with_the_configuration_of_an_adapter_is_one(tmp_path: Path) -> None:
    assert not TrainedFolder(tmp_path).is_adapter
    TrainedFolder(tmp_path).adapter_config.write_text("{}", "utf-8")
    assert TrainedFolder(tmp_path).is_adapter


@pytest.mark.parametrize("part", ["llm_detox", "components", "pipelines"])
def test_no_other_module_spells_the_name_of_a_file(part: str) -> None:
    known = names()
    spelled = {(str(path.relative_to(ROOT)), text) for path in (ROOT / part).rglob("*.py")
               if path != Path(artifacts.__file__) for text in literals(path) if text in known}
    assert not spelled


@pytest.mark.parametrize("part", ["llm_detox", "pipelines", "benchmarks"])
def test_no_other_module_lists_the_arms(part: str) -> None:
    for path in (ROOT / part).rglob("*.py"):
        if path != Path(artifacts.__file__):
            assert not {"raw", "detoxified"} <= set(literals(path)), f"{path} lists {', '.join(ARMS)}"


@dataclass(frozen=True)
class Part:
    value: Number
    count: int


@dataclass(frozen=True)
class Whole:
    title: str | None
    parts: dict[str, Part]
    pairs: list[tuple[float, int]]
    judge: Part | None = field(default=None, metadata=OPTIONAL)


WHOLE = Whole("ä", {"a": Part(0.5, 2)}, [(0.25, 3)])


def test_what_is_written_is_read_as_the_same(tmp_path: Path) -> None:
    for compact in (False, True):
        write_json(tmp_path / "whole.json", WHOLE, compact=compact)
        assert read_json(tmp_path / "whole.json", Whole) == WHOLE


def test_keys_are_the_fields_in_their_order_and_what_was_not_measured_has_none() -> None:
    assert list(plain(WHOLE)) == ["title", "parts", "pairs"]
    assert list(plain(Whole(None, {}, [], Part(1.0, 1)))) == ["title", "parts", "pairs", "judge"]
    assert plain(Whole(None, {}, []))["title"] is None, "a plain None is a value"


def test_what_is_no_number_is_null_in_the_file_and_nan_again(tmp_path: Path) -> None:
    write_json(tmp_path / "part.json", Part(math.nan, 1))
    assert json.loads((tmp_path / "part.json").read_text("utf-8"))["value"] is None
    assert math.isnan(read_json(tmp_path / "part.json", Part).value)


@pytest.mark.parametrize("text", ["{", '{"value": 0.5}', '{"value": "much", "count": 1}', "[]"])
def test_another_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "part.json").write_text(text, "utf-8")
    with pytest.raises(ValueError, match=r"."):
        read_json(tmp_path / "part.json", Part)
