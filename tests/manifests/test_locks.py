"""The locks hold what is needed and nothing else, and torch is there once for both environments."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from llm_detox.errors import DetoxError
from llm_detox.serve.local_stack import caikit_python
from tests.conftest import REPOSITORY

LOCKS = REPOSITORY / "requirements"
SHARED = LOCKS / "torch.txt"

# What an environment is made for. Everything else in its lock must be required by one of these.
_SERVER = ["httptools", "uvloop", "websockets"]  # what makes uvicorn fast
_CAIKIT = ["caikit-nlp", "fastapi", "sse-starlette", "uvicorn", "python-multipart", "prometheus-client",
           "py-grpc-prometheus", "aiohttp", *_SERVER]  # Caikit's extras for a runtime, without what fastapi[all] brings
_WORKBENCH = ["caikit-tgis-backend", "cryptography", "fastapi", "gguf", "grpcio-health-checking", "grpcio-tools",
              "prometheus-client", "sentencepiece", "uvicorn", *_SERVER]
# Whose requirements are narrower than what works, or of which only files are read.
_NOT_FOLLOWED = {"caikit-tgis-backend"}


def pins(lock: Path) -> dict[str, str]:
    return {str(canonicalize_name(name)): version for name, version in
            re.findall(r"^([\w.-]+)==(\S+)", lock.read_text("utf-8"), re.MULTILINE)}


def installed_beside(python: str) -> dict[str, metadata.Distribution]:
    code = "import sys; print('\\n'.join(sys.path))"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True, env={})
    found: dict[str, metadata.Distribution] = {}
    for one in metadata.distributions(path=[path for path in done.stdout.splitlines() if "site-packages" in path]):
        found.setdefault(str(canonicalize_name(one.metadata["Name"])), one)
    return found


def other_environment() -> str:
    try:
        return caikit_python()
    except DetoxError as error:
        pytest.skip(str(error))


def required(roots: list[str], installed: dict[str, metadata.Distribution]) -> set[str]:
    """The roots and all that they need, extras left out."""
    reached, todo = set(), list(roots)
    while todo:
        name = todo.pop()
        if name not in reached:
            reached.add(name)
            lines = () if name in _NOT_FOLLOWED or name not in installed else installed[name].requires or ()
            for one in map(Requirement, lines):
                if one.marker is None or one.marker.evaluate({"extra": ""}):
                    todo.append(str(canonicalize_name(one.name)))
    return reached


# Extras of which no image and no test has the packages; `languages` is in the lock of the demo.
_NOT_LOCKED = {"evalhub", "harness", "languages", "mlflow"}


def workbench_roots() -> list[str]:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]
    extras = {name: group for name, group in project["optional-dependencies"].items() if name not in _NOT_LOCKED}
    groups = [project["dependencies"], *extras.values()]
    names = {str(canonicalize_name(Requirement(one).name)) for group in groups for one in group}
    return [*(names - {"llm-detox"}), *_WORKBENCH]


@pytest.mark.parametrize("name", ["workbench", "caikit"])
def test_a_lock_holds_what_its_roots_need_and_nothing_else(name: str) -> None:
    python = sys.executable if name == "workbench" else other_environment()
    roots = workbench_roots() if name == "workbench" else _CAIKIT
    needed = required([*roots, "torch"], installed_beside(python))
    lock, shared = pins(LOCKS / f"{name}.txt"), pins(SHARED)
    assert not set(lock) - needed, "nothing needs it"
    missing = {one for one in needed - set(lock) - set(shared) if not one.startswith(("nvidia-", "triton", "cuda-"))}
    assert not missing


@pytest.mark.parametrize("path", sorted(LOCKS.glob("*.in")), ids=lambda path: path.stem)
def test_every_pin_is_locked_with_the_digests_of_its_files(path: Path) -> None:
    lock = path.with_suffix(".txt")
    assert pins(lock) == pins(path), "make locks"
    entries = lock.read_text("utf-8").split("\n", 1)[1]
    assert re.fullmatch(r"(?:[\w.-]+==\S+(?: \\\n    --hash=sha256:[0-9a-f]{64})+\n)+", entries)


def test_what_torch_needs_on_gpus_is_locked_apart() -> None:
    gpu = pins(LOCKS / "torch-cuda.txt")
    assert {"triton", "nvidia-cublas"} <= set(gpu)
    assert not set(gpu) & set(pins(SHARED))


@pytest.mark.heavy
def test_a_file_with_another_digest_is_not_installed(tmp_path: Path) -> None:
    locked = (LOCKS / "test.txt").read_text("utf-8")
    entry = re.search(r"^iniconfig==.*\n(?:    --hash.*\n)+", locked, re.MULTILINE)
    assert entry is not None
    changed = re.sub(r"sha256:.{8}", "sha256:00000000", entry[0])
    answers = {}
    for name, text in (("right", entry[0]), ("changed", changed)):
        (tmp_path / f"{name}.txt").write_text(text, "utf-8")
        answers[name] = subprocess.run(
            [sys.executable, "-m", "pip", "install", "--no-deps", "--require-hashes", "--target", tmp_path / name,
             "-r", tmp_path / f"{name}.txt"], capture_output=True, text=True)
    assert answers["right"].returncode == 0, answers["right"].stderr
    assert answers["changed"].returncode == 1
    assert "DO NOT MATCH THE HASHES" in answers["changed"].stderr
    assert not (tmp_path / "changed").exists()


def test_torch_is_pinned_in_one_place_and_what_is_pinned_twice_has_one_version() -> None:
    shared = pins(SHARED)
    for name in ("workbench", "caikit"):
        lock = pins(LOCKS / f"{name}.txt")
        assert "torch" not in lock
        assert not {one for one in lock if lock[one] != shared.get(one, lock[one])}, name


def test_both_environments_have_the_same_torch_and_packages_of_their_own() -> None:
    code = ("import torch, transformers; from importlib.metadata import version;"
            "print(torch.__file__, version('torch'), version('transformers'), transformers.__file__, sep='\\n')")
    torch, version, transformers, file = _answers(other_environment(), code)
    ours = _answers(sys.executable, code)
    assert [torch, version] == ours[:2], "make clean install: torch is on the disk twice"
    assert transformers == pins(LOCKS / "caikit.txt")["transformers"] != ours[2]
    assert file != ours[3]


def _answers(python: str, code: str) -> list[str]:
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True,
                          env={"HF_HUB_OFFLINE": "1"}).stdout.splitlines()
