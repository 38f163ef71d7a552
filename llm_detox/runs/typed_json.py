"""Dataclasses as JSON and back: a file's keys are the names of the fields, in their order."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, TypeAdapter

T = TypeVar("T")
Number = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]
"""A float that may be unknown: NaN in memory, null in the file, for NaN is no JSON."""
OPTIONAL = {"optional": True}
"""Metadata of a field that the file leaves out where it is None."""


def plain(value: object) -> Any:
    """JSON values of a dataclass, and of all that it holds."""
    if is_dataclass(value):
        values = ((one, getattr(value, one.name)) for one in fields(value))
        return {one.name: plain(part) for one, part in values if part is not None or not one.metadata.get("optional")}
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {name: plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def write_json(path: Path, value: object, *, compact: bool = False) -> None:
    """Write a dataclass, or plain values, as a file that people read; `compact` is for long lists of numbers."""
    text = json.dumps(plain(value)) if compact else json.dumps(plain(value), indent=2, ensure_ascii=False)
    path.write_text(text, "utf-8")


def read_json(path: Path, kind: type[T]) -> T:
    """Read what `write_json` wrote from a dataclass of this kind; keys that it does not have are left out.

    Raises:
        OSError: the file is missing.
        ValueError: it is no JSON, or lacks a field, or a value is of another type.
    """
    return TypeAdapter(kind).validate_python(json.loads(path.read_text("utf-8")))
