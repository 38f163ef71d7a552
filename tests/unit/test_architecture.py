"""The house: import arrows point one way, and the command line starts fast."""

from __future__ import annotations

import ast
import resource
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIBRARY = sorted((ROOT / "llm_detox").rglob("*.py"))
HEAVY = {"torch", "transformers", "trl", "peft"}
READS_BY_EXECUTING = {
    "pickle.load", "pickle.loads", "torch.load", "joblib.load", "eval", "exec", "yaml.unsafe_load"}
MAY_IMPORT_TORCH = {"training", "generation", "rephrase", "scoring", "evaluation", "export"}
# From the ground up: a room imports from rooms before it, and from nothing after it.
ROOMS = (
    "errors", "progress", "processes", "plugins", "recipe", "runs",
    "storage", "data", "cluster", "client",
    "generation", "judge", "scoring",
    "export", "rephrase", "training", "evaluation", "detector", "guard",
    "corpus", "serve", "bench", "compare_ui", "doctor", "rehearsal",
    "api", "cli",
)


def test_every_file_of_the_library_is_in_the_wheel() -> None:
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]["package-data"]
    folder = ROOT / "llm_detox"
    packed = {path for pattern in patterns["llm_detox"] for path in folder.glob(pattern)}
    others = {path for path in folder.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert others <= packed, sorted(map(str, others - packed))


def imports(path: Path, *, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text("utf-8"))
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    return {
        name
        for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""])
    }


def module_name(path: Path, root: Path = ROOT) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def arrows(root: Path = ROOT) -> dict[str, set[str]]:
    """Module -> modules of the library that it imports, imports inside functions and for types counted."""
    files = {module_name(path, root): path for path in sorted((root / "llm_detox").rglob("*.py"))}
    found: dict[str, set[str]] = {}
    for name, path in files.items():
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        found[name] = {target for node in ast.walk(ast.parse(path.read_text("utf-8")))
                       for target in _imported(node, package, files) if target != name}
    return found


def _imported(node: ast.AST, package: str, files: dict[str, Path]) -> set[str]:
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names} & files.keys()
    if isinstance(node, ast.ImportFrom):
        levels = package.split(".")
        base = ".".join(levels[:len(levels) - node.level + 1]) if node.level else ""
        module = ".".join(part for part in (base, node.module) if part)
        names = {f"{module}.{alias.name}" for alias in node.names}
        return names & files.keys() | ({module} & files.keys() if not names <= files.keys() else set())
    return set()


def upward(found: dict[str, set[str]]) -> list[str]:
    def floor(module: str) -> int:
        room = module.split(".")[1:2]
        return ROOMS.index(room[0]) if room else -1  # the package's face: its version

    return [f"{module} -> {target}" for module, targets in found.items() for target in sorted(targets)
            if module != "llm_detox" and floor(target) > floor(module)]


def circles(found: dict[str, set[str]]) -> list[set[str]]:
    """Groups of modules each of which reaches the others."""
    reach = {module: set(targets) for module, targets in found.items()}
    for via in reach:
        for targets in reach.values():
            if via in targets:
                targets |= reach[via]
    groups = [{other for other in reach if other in reach[module] and module in reach[other]} for module in reach]
    return [group for number, group in enumerate(groups) if group and group not in groups[:number]]


def test_every_room_has_its_floor() -> None:
    assert {module.split(".")[1] for module in arrows() if "." in module} == set(ROOMS)


def test_no_import_runs_upward() -> None:
    assert upward(arrows()) == []


def test_no_modules_import_one_another_in_a_circle() -> None:
    assert circles(arrows()) == []


def test_an_import_upward_and_a_circle_are_seen_inside_functions_too(tmp_path: Path) -> None:
    for module, text in {
        "errors": "", "data/records": "def read():\n    from llm_detox.scoring.base import ToxicityScorer\n",
        "scoring/base": "from . import load\n", "scoring/load": "def load():\n    import llm_detox.scoring.base\n",
    }.items():
        path = tmp_path / "llm_detox" / f"{module}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    assert upward(arrows(tmp_path)) == ["llm_detox.data.records -> llm_detox.scoring.base"]
    assert circles(arrows(tmp_path)) == [{"llm_detox.scoring.base", "llm_detox.scoring.load"}]


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
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        # Processor time: what else the machine does at the moment is not ours.
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert "detoxify" in done.stdout
        assert done.stderr.strip().endswith("False")
    assert min(seconds) <= 0.5


def test_no_model_or_data_is_read_by_executing_it() -> None:
    for path in [*LIBRARY, *(ROOT / "serving").rglob("*.py")]:
        tree = ast.parse(path.read_text("utf-8"))
        calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        assert not calls & READS_BY_EXECUTING, path
        assert "trust_remote_code=True" not in path.read_text("utf-8"), path


def test_no_test_imports_from_a_test() -> None:
    for path in sorted((ROOT / "tests").rglob("*.py")):
        tests = {name for name in imports(path) if name.rpartition(".")[2].startswith("test_")}
        assert not tests, f"{path}: what several tests need stands in tests/helpers"


def test_each_room_has_its_folder_of_tests() -> None:
    folders = {path.parent.name for path in (ROOT / "tests/unit").rglob("test_*.py")} - {"unit"}
    assert folders <= set(ROOMS)
