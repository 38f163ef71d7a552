"""Requests that nobody would send: values by a schema or a message type, and bytes that are nearly right."""

from __future__ import annotations

import math
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from hypothesis import strategies as st

EXTREME_INTS = [0, 1, -1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, -(2**63), 2**64 - 1, 10**30]
EXTREME_FLOATS = [0.0, -0.0, 5e-324, 1e-45, 3.4e38, 1e308, -1e308, math.inf, -math.inf, math.nan, 0.05, 1.0]
TEXTS = st.text(max_size=40) | st.sampled_from(
    ["", "\0", "</s>", "\u202e\ufeff", "a" * 5000, "🙂" * 300, "\r\n\r\n", "{}"])
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(EXTREME_INTS) | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4), max_leaves=12)


def by_schema(schema: dict[str, Any], root: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values that an OpenAPI schema allows.

    Args:
        schema: the part of it to follow.
        root: the document that `$ref` points into.

    Raises:
        ValueError: the schema has a form that is not known here.
    """
    if "$ref" in schema:
        found: Any = root
        for part in schema["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        return st.deferred(lambda: by_schema(found, root))
    for union in ("anyOf", "oneOf"):
        if union in schema:
            return st.one_of(*(by_schema(one, root) for one in schema[union]))
    if "allOf" in schema:
        [only] = schema["allOf"]
        return by_schema(only, root)
    if "const" in schema or "enum" in schema:
        return st.sampled_from(schema.get("enum") or [schema["const"]])
    if "properties" in schema or schema.get("type") == "object":
        known = {name: by_schema(one, root) for name, one in schema.get("properties", {}).items()}
        needed = set(schema.get("required", ()))
        return st.fixed_dictionaries({name: one for name, one in known.items() if name in needed},
                                     optional={name: one for name, one in known.items() if name not in needed})
    kinds: dict[str, st.SearchStrategy[Any]] = {
        "string": TEXTS, "integer": st.integers(-3, 300) | st.sampled_from(EXTREME_INTS), "boolean": st.booleans(),
        "number": st.floats(-2, 3) | st.sampled_from([one for one in EXTREME_FLOATS if math.isfinite(one)]),
        "null": st.none()}
    if schema.get("type") == "array":
        return st.lists(by_schema(schema.get("items", {}), root), max_size=8)
    if schema.get("type") in kinds:
        return kinds[schema["type"]]
    if not set(schema) - {"title", "description", "default"}:
        return JSON
    raise ValueError(f"unknown form of schema: {schema}")


def by_message(kind: Any, depth: int = 0) -> st.SearchStrategy[Any]:
    """Messages of a protobuf class with ordinary and extreme values in any of their fields."""
    fields = {field.name: _by_field(field, kind, depth) for field in kind.DESCRIPTOR.fields}
    return st.fixed_dictionaries({}, optional=fields).map(lambda values: _made(kind, values))


def _made(kind: Any, values: dict[str, Any]) -> Any:
    message = kind()
    for name, value in values.items():
        if kind.DESCRIPTOR.fields_by_name[name].is_repeated:
            getattr(message, name).extend(value)
        elif kind.DESCRIPTOR.fields_by_name[name].type == FieldDescriptor.TYPE_MESSAGE:
            getattr(message, name).CopyFrom(value)
        else:
            setattr(message, name, value)
    return message


def _by_field(field: FieldDescriptor, kind: Any, depth: int) -> st.SearchStrategy[Any]:
    one = _single(field, depth)
    return st.lists(one, max_size=8) if field.is_repeated else one


def _single(field: FieldDescriptor, depth: int) -> st.SearchStrategy[Any]:
    from google.protobuf import message_factory

    f = FieldDescriptor
    if field.type == f.TYPE_MESSAGE:
        inner: Descriptor = field.message_type
        return by_message(message_factory.GetMessageClass(inner), depth + 1)
    if field.type == f.TYPE_ENUM:
        return st.sampled_from([value.number for value in field.enum_type.values]) | st.integers(0, 100)
    if field.type == f.TYPE_STRING:
        return TEXTS
    if field.type == f.TYPE_BYTES:
        return st.binary(max_size=60)
    if field.type == f.TYPE_BOOL:
        return st.booleans()
    if field.type == f.TYPE_FLOAT:
        return st.floats(-2, 3, width=32) | st.sampled_from([0.0, 1e-45, 3e38, -3e38, math.inf, -math.inf, math.nan])
    if field.type == f.TYPE_DOUBLE:
        return st.floats(-2, 3) | st.sampled_from(EXTREME_FLOATS)
    low, high = {f.TYPE_UINT32: (0, 2**32 - 1), f.TYPE_UINT64: (0, 2**64 - 1), f.TYPE_INT32: (-(2**31), 2**31 - 1),
                 f.TYPE_INT64: (-(2**63), 2**63 - 1)}[field.type]
    return st.integers(max(low, -3), 300) | st.sampled_from([one for one in EXTREME_INTS if low <= one <= high])


@st.composite
def damaged(draw: st.DrawFn, whole: st.SearchStrategy[bytes]) -> bytes:
    """Bytes with some changed, left out, doubled or put in."""
    data = bytearray(draw(whole))
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(len(data) - 1, 0)))
        how = draw(st.sampled_from(["change", "cut", "insert", "double"]))
        if how == "change" and data:
            data[place] = draw(st.integers(0, 255))
        elif how == "cut":
            del data[place : place + draw(st.integers(1, 20))]
        elif how == "insert":
            data[place:place] = draw(st.binary(min_size=1, max_size=12))
        else:
            data[place:place] = data[place : place + 30]
    return bytes(data)
