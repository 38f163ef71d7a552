"""The recordings of real controllers: a folder beside this repository, or where $LLM_DETOX_RECORDINGS says."""

from __future__ import annotations

import os
from collections.abc import Sequence
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

Object = dict[str, Any]
ROOT = Path(os.environ.get("LLM_DETOX_RECORDINGS") or Path(__file__).resolve().parents[2].parent / "shared")
needs_recordings = pytest.mark.skipif(
    not (ROOT / "kserve").is_dir(),
    reason="the recordings of the real controllers are not here: set LLM_DETOX_RECORDINGS to their folder")


def documents(path: Path) -> list[Object]:
    """The documents of a YAML file that are not empty."""
    return documents_of(path.read_text("utf-8"))


def documents_of(text: str) -> list[Object]:
    """The documents of a YAML text that are not empty; a copy for each caller."""
    return deepcopy(_parse(text))


@cache
def _parse(text: str) -> list[Object]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return [one for one in yaml.load_all(text, loader) if one]


def only(objects: Sequence[Object], kind: str, name: str | None = None) -> Object:
    """The one object of this kind (and name)."""
    [match] = [one for one in objects if one["kind"] == kind and name in (None, one["metadata"]["name"])]
    return match


def differences(expected: Any, actual: Any, place: str = "") -> list[str]:
    """What differs, one line for each field, with its place. Absent and null are different things."""
    if isinstance(expected, dict) and isinstance(actual, dict):
        return [line for key in sorted({*expected, *actual}, key=str)
                for line in differences(expected.get(key, "(absent)"), actual.get(key, "(absent)"), f"{place}.{key}")]
    if isinstance(expected, list) and isinstance(actual, list) and len(expected) == len(actual):
        return [line for index, (one, other) in enumerate(zip(expected, actual, strict=True))
                for line in differences(one, other, f"{place}[{index}]")]
    return [] if expected == actual else [f"{place}: recorded {expected!r}, made {actual!r}"]
