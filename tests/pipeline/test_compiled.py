"""The compiled pipeline: current, cached where it may be, and nothing installed at run time."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import yaml

from components.readme import component_folders, readme
from pipelines.compile import COMPILED, compile_all

ROOT = Path(__file__).parents[2]


def spec() -> dict:
    return next(yaml.safe_load_all((COMPILED / "detox-and-serve.yaml").read_text("utf-8")))


def test_the_committed_yaml_is_what_the_code_compiles_to(tmp_path: Path) -> None:
    for path in compile_all(tmp_path):
        assert path.read_text("utf-8") == (COMPILED / path.name).read_text("utf-8"), "python -m pipelines compile"


def test_publish_deploy_and_smoke_stand_behind_the_gate_and_are_never_cached() -> None:
    gated = spec()["components"]["comp-condition-1"]["dag"]["tasks"]
    assert set(gated) == {"convert", "publish", "deploy", "smoke"}
    for name in ("publish", "deploy", "smoke"):
        assert not gated[name]["cachingOptions"].get("enableCache", False), name
    condition = spec()["root"]["dag"]["tasks"]["condition-1"]["triggerPolicy"]["condition"]
    assert "'pass'" in condition


def test_both_fine_tuned_arms_run_the_same_component_on_their_own_text() -> None:
    tasks = spec()["root"]["dag"]["tasks"]
    parameters = [tasks[name]["inputs"]["parameters"] for name in ("sft", "sft-2")]
    assert {each["texts_file"]["runtimeValue"]["constant"] for each in parameters} == {"texts.jsonl", "records.jsonl"}


def test_no_step_installs_packages_at_run_time() -> None:
    for name, executor in spec()["deploymentSpec"]["executors"].items():
        assert "pip install" not in " ".join(map(str, executor["container"]["command"])), name


@pytest.mark.parametrize("path", [folder / "component.py" for folder in component_folders()], ids=str)
def test_component_modules_import_nothing_heavy_at_the_top(path: Path) -> None:
    imported = {
        alias.name if isinstance(node, ast.Import) else node.module
        for node in ast.parse(path.read_text("utf-8")).body if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert imported <= {"kfp", "components.images"}


@pytest.mark.parametrize("folder", component_folders(), ids=lambda folder: folder.name)
def test_every_component_describes_itself_as_it_is(folder: Path) -> None:
    assert (folder / "README.md").read_text("utf-8") == readme(folder), "python -m components.readme"
    metadata = yaml.safe_load((folder / "metadata.yaml").read_text("utf-8"))
    tasks = {**spec()["root"]["dag"]["tasks"], **spec()["components"]["comp-condition-1"]["dag"]["tasks"]}
    assert tasks[folder.name]["cachingOptions"].get("enableCache", False) == metadata["cached"]
