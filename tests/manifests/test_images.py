"""The Containerfiles, as far as they can be judged without building them; and the bill of materials."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY

IMAGES = REPOSITORY / "images"
FILES = sorted(IMAGES.glob("Containerfile.*"))


def instructions(path: Path) -> list[tuple[str, str]]:
    text = re.sub(r"\\\n", " ", path.read_text("utf-8"))
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_image_ends_as_a_user_that_is_not_root_and_may_be_any(path: Path) -> None:
    users = [value for name, value in instructions(path) if name == "USER"]
    assert users[-1] == "1001"
    environment = " ".join(value for name, value in instructions(path) if name == "ENV")
    assert "HOME=/tmp" in environment, "another user id has no home"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_image_installs_from_its_lock_and_carries_no_installer(path: Path) -> None:
    runs = " ".join(value for name, value in instructions(path) if name == "RUN")
    for lock in ("torch", "torch-cuda", "requirements"):
        assert f"pip install --no-deps --require-hashes -r /build/{lock}.txt" in runs
    assert len(re.findall(r"--require-hashes -r ", runs)) == len(re.findall(r" -r ", runs))
    assert "pip uninstall --yes pip" in runs
    for package in re.findall(r"pip install (?:--\S+ (?:\"[^\"]*\" )?)*([a-z]\S+)", runs):
        assert "==" in package, f"{package} is not pinned"


def test_the_demo_image_carries_every_package_that_a_recipe_names() -> None:
    names = packages_in("workbench-demo")
    for recipe in (REPOSITORY / "recipes").glob("*.yaml"):
        assert set(re.findall(r"package://([^/]+)/", recipe.read_text("utf-8"))) <= names, recipe.name


@pytest.mark.parametrize("target", ["workbench", "engine"])
def test_no_image_for_production_carries_weights_of_single_authors(target: str) -> None:
    assert "torch" in packages_in(target)
    assert not packages_in(target) & locked(REPOSITORY / "requirements/demo.txt")


def packages_in(target: str) -> set[str]:
    """The packages of all locks that an image of Containerfile.workbench is made of."""
    stages: dict[str, list[tuple[str, str]]] = {}
    for name, value in instructions(IMAGES / "Containerfile.workbench"):
        if name == "FROM":
            stages[value.split()[-1]] = []
        if stages:
            stages[list(stages)[-1]].append((name, value))
    names, todo = set(), [target]
    while todo:
        for name, value in stages.get(todo.pop(), []):
            words = value.split()
            todo += [words[0].removeprefix("--from=")] if name == "FROM" or words[0].startswith("--from=") else []
            if name == "COPY" and words[0].startswith("requirements/"):
                for lock in (word for word in words[:-1] if word.endswith(".txt")):
                    names |= locked(REPOSITORY / lock)
    return names


def locked(lock: Path) -> set[str]:
    return set(re.findall(r"^([a-z0-9.-]+)==", lock.read_text("utf-8"), re.MULTILINE))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_what_is_copied_is_there_and_not_ignored(path: Path) -> None:
    kept = {line[1:] for line in (REPOSITORY / ".containerignore").read_text("utf-8").splitlines() if line[:1] == "!"}
    for name, value in instructions(path):
        if name == "COPY" and not value.startswith("--from"):
            for source in value.split()[:-1]:
                assert next(REPOSITORY.glob(source), None), source
                assert any(source == one or source.startswith(f"{one}/") for one in kept), f"{source} is ignored"


def test_base_images_have_a_version() -> None:
    for path in FILES:
        for name, value in instructions(path):
            if name == "ARG" and value.startswith(("BUILDER=", "RUNTIME=")):
                assert re.search(r"[:@][\w.:-]+$", value), f"{path.name}: {value}"
                assert not value.endswith(":latest")


def test_the_bill_of_materials_lists_what_is_installed_the_same_each_time() -> None:
    def bill() -> str:
        return subprocess.run([sys.executable, str(IMAGES / "sbom.py"), "x"], capture_output=True, text=True,
                              check=True).stdout

    first = bill()
    assert first == bill()
    listed = {one["name"]: one["version"] for one in json.loads(first)["components"]}
    for name in ("torch", "transformers", "kfp"):
        assert listed[name] == metadata.version(name)
    assert all(one["purl"].startswith("pkg:pypi/") for one in json.loads(first)["components"])


@pytest.mark.parametrize("lock", sorted((REPOSITORY / "requirements").glob("*.txt")), ids=lambda lock: lock.stem)
def test_the_bill_of_materials_of_a_lock_has_each_package_with_its_digests(lock: Path) -> None:
    def bill() -> dict[str, Any]:
        run = subprocess.run([sys.executable, str(IMAGES / "sbom.py"), "x", str(lock)], capture_output=True, text=True,
                             check=True)
        found: dict[str, Any] = json.loads(run.stdout)
        return found

    first, text = bill(), lock.read_text("utf-8")
    assert first == bill()
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE))
    assert {one["name"]: one["version"] for one in first["components"]} == {
        re.sub(r"[-_.]+", "-", name).lower(): version for name, version in pins.items()}
    digests = [digest["content"] for one in first["components"] for digest in one["hashes"]]
    assert sorted(digests) == sorted(re.findall(r"--hash=sha256:(\w+)", text))
