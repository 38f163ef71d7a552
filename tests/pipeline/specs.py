"""Reading compiled pipelines, and the fields that a 2.16 backend knows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from pipelines.compile import COMPILED

# Message -> field -> its message ("map X": values of X, "": a plain value), from the descriptors of kfp-pipeline-spec
# and kfp-kubernetes 2.16.0.
KNOWN: dict[str, dict[str, str]] = json.loads(Path(__file__).with_name("kfp-2.16-fields.json").read_text("utf-8"))
_ROOTS = ("ml_pipelines.PipelineSpec", "ml_pipelines.PlatformSpec")
# What the descriptors leave open is read by the backend as these.
_OPEN = {"deploymentSpec": "ml_pipelines.PipelineDeploymentConfig"}
_EXECUTORS = "map kfp_kubernetes.KubernetesExecutorConfig"

Object = dict[str, Any]


@lru_cache
def documents(path: Path = COMPILED / "detox-and-serve.yaml") -> tuple[Object, Object]:
    """The pipeline spec and the platform spec."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    spec, platform = yaml.load_all(path.read_text("utf-8"), Loader=loader)
    return spec, platform


def executors(path: Path = COMPILED / "detox-and-serve.yaml") -> dict[str, tuple[Object, Object]]:
    """Executor -> its container, and its part of the platform spec."""
    spec, platform = documents(path)
    placed = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    return {name: (one["container"], placed.get(name, {})) for name, one in spec["deploymentSpec"]["executors"].items()}


def step_of(name: str) -> str:
    """`exec-sft-2`, `comp-sft-2` or `sft-2` -> `sft`."""
    return name.removeprefix("exec-").removeprefix("comp-").rstrip("0123456789").rstrip("-")


def tasks(thing: Any) -> list[tuple[str, Object]]:
    """All tasks of a spec, at any depth."""
    if not isinstance(thing, dict):
        return []
    own = list(thing["tasks"].items()) if "tasks" in thing else []
    return own + [one for value in thing.values() for one in tasks(value)]


def steps(spec: Object) -> list[tuple[str, Object]]:
    """The tasks that are pods: the step of each, and the task."""
    found = [(step_of(task["componentRef"]["name"]), task) for _, task in tasks(spec)]
    return [(name, task) for name, task in found if name not in ("condition", "for-loop", "exit-handler")]


def unknown_fields(path: Path) -> list[str]:
    """Fields of a compiled pipeline that a 2.16 backend does not know."""
    return [field for document, message in zip(documents(path), _ROOTS, strict=True)
            for field in _unknown(document, message, "")]


def _unknown(thing: Any, message: str, place: str) -> Iterator[str]:
    if message.startswith("map "):
        for key, value in thing.items():
            yield from _unknown(value, message[4:], f"{place}.{key}")
    elif isinstance(thing, list):
        for number, value in enumerate(thing):
            yield from _unknown(value, message, f"{place}[{number}]")
    elif message in KNOWN and isinstance(thing, dict):
        for key, value in thing.items():
            if key not in KNOWN[message]:
                yield f"{place}.{key}"
            else:
                yield from _unknown(value, _message_of(message, key), f"{place}.{key}")


def _message_of(message: str, key: str) -> str:
    if message == "ml_pipelines.PipelineSpec" and key in _OPEN:
        return _OPEN[key]
    if message == "ml_pipelines.PlatformDeploymentConfig":
        return _EXECUTORS
    return KNOWN[message][key]
