"""The names of the files that steps hand on stand once."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from llm_detox.runs import artifacts
from llm_detox.runs.artifacts import ARMS, DataFolder, File, Folder, ModelFolder, TrainedFolder

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
