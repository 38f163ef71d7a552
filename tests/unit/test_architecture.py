"""The house: import arrows point one way, and the command line starts fast."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIBRARY = sorted((ROOT / "llm_detox").rglob("*.py"))
HEAVY = {"torch", "transformers", "trl", "peft"}
READS_BY_EXECUTING = {
    "pickle.load", "pickle.loads", "torch.load", "joblib.load", "eval", "exec", "yaml.unsafe_load"}
MAY_IMPORT_TORCH = {"training", "generation", "rephrase", "scoring", "evaluation", "export"}


def imports(path: Path, *, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text("utf-8"))
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    return {
        name
        for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""])
    }


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_library_imports_neither_kfp_nor_what_is_built_on_it(path: Path) -> None:
    roots = {name.split(".")[0] for name in imports(path)}
    assert not roots & {"kfp", "pipelines", "components", "serving"}


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: str(path.relative_to(ROOT)))
def test_torch_loads_only_where_models_run(path: Path) -> None:
    package = path.relative_to(ROOT / "llm_detox").parts[0]
    heavy = {name.split(".")[0] for name in imports(path, top_level_only=True)} & HEAVY
    assert not heavy or package in MAY_IMPORT_TORCH


def test_help_answers_in_half_a_second_and_loads_no_torch() -> None:
    code = "import sys; sys.argv = ['llm-detox', '--help']\nfrom llm_detox.cli import main\n" \
           "try:\n    main()\nfinally:\n    print('torch' in sys.modules, file=sys.stderr)"
    times = []
    for _ in range(3):
        started = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
        times.append(time.perf_counter() - started)
        assert "detoxify" in done.stdout
        assert done.stderr.strip().endswith("False")
    assert min(times) <= 0.5


def test_no_model_or_data_is_read_by_executing_it() -> None:
    for path in [*LIBRARY, *(ROOT / "serving").rglob("*.py")]:
        tree = ast.parse(path.read_text("utf-8"))
        calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        assert not calls & READS_BY_EXECUTING, path
        assert "trust_remote_code=True" not in path.read_text("utf-8"), path
