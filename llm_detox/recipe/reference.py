"""The reference of a recipe's keys as Markdown, read from the schema: docs/configuration.md."""

from __future__ import annotations

import json
from typing import Any, get_args

from pydantic import BaseModel

from llm_detox.recipe import Recipe

_HEAD = """# The keys of a recipe

Made from the schema by `make docs`; a test keeps the two the same. Change `llm_detox/recipe/`, not this file.

A recipe is a YAML file of these sections. Keys that are not given have the default; *required* ones have none. Any key
is set on the command line with `--set section.key=value`, the value in YAML. `llm-detox recipe show FILE` prints a
recipe with every default filled in, `llm-detox recipe schema` the same as here as JSON schema. A section that stands in
several places is described once; `[]` behind a name means a list of such sections. `plugin:NAME` names what an
installed package brings, see [extending.md](extending.md).
"""
_BOUNDS = {"exclusiveMinimum": "over {}", "minimum": "at least {}", "exclusiveMaximum": "under {}",
           "maximum": "at most {}"}


def reference() -> str:
    """The whole page: a table for every section of the schema."""
    places: dict[type[BaseModel], list[str]] = {}
    _collect(Recipe, "", places)
    schema = Recipe.model_json_schema()
    tables = [_section(kind, where, schema if kind is Recipe else schema["$defs"][kind.__name__])
              for kind, where in places.items()]
    return "\n".join([_HEAD, *tables])


def _collect(kind: type[BaseModel], path: str, places: dict[type[BaseModel], list[str]]) -> None:
    """Where each section stands, in the order of the schema."""
    places.setdefault(kind, []).append(path)
    for name, field in kind.model_fields.items():
        for nested in _sections_in(field.annotation):
            if nested is not kind:
                many = "[]" if "list[" in str(field.annotation) else ""
                _collect(nested, f"{path}.{name}{many}".lstrip("."), places)


def _sections_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and not get_args(annotation):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [kind for part in get_args(annotation) for kind in _sections_in(part)]


def _section(kind: type[BaseModel], places: list[str], schema: dict[str, Any]) -> str:
    title = ", ".join(f"`{place}`" for place in places if place) or "The recipe itself"
    about = [" ".join(kind.__doc__.split()), ""] if kind.__doc__ and "__doc__" in vars(kind) else []
    rows = [_row(name, field, schema["properties"][name]) for name, field in kind.model_fields.items()]
    return "\n".join([f"## {title}", "", *about, "| key | value | default | meaning |", "|---|---|---|---|", *rows, ""])


def _row(name: str, field: Any, schema: dict[str, Any]) -> str:
    cells = [f"`{name}`", _values(schema), _default(field), schema.get("description", "")]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _default(field: Any) -> str:
    if field.is_required():
        return "" if _sections_in(field.annotation) == [field.annotation] else "*required*"
    value = field.default
    if isinstance(value, BaseModel):  # what differs here from the section's own defaults
        changed = value.model_dump(mode="json", exclude_defaults=True)
        return f"`{json.dumps(changed)}`" if changed else ""
    return f"`{json.dumps(value, ensure_ascii=False)}`"


def _values(schema: dict[str, Any]) -> str:
    """What a JSON schema allows, in words."""
    if "$ref" in schema:
        return "section"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    for union in ("anyOf", "oneOf"):
        if union in schema:
            return " or ".join(_values(part) for part in schema[union])
    if schema["type"] == "array":
        return _array(schema)
    if schema["type"] == "object":
        return f"names and their {_values(schema['additionalProperties'])}"
    if schema["type"] == "null":
        return "`null`"
    return " ".join([{"integer": "integer", "number": "number", "boolean": "true or false", "string": "text"}[
        schema["type"]], *_limits(schema)])


def _array(schema: dict[str, Any]) -> str:
    if "prefixItems" in schema:
        return f"list of {len(schema['prefixItems'])}: {_values(schema['prefixItems'][0])} each"
    least = f" (at least {schema['minItems']})" if "minItems" in schema else ""
    return f"list of {_values(schema['items'])}{least}"


def _limits(schema: dict[str, Any]) -> list[str]:
    bounds = [words.format(schema[key]) for key, words in _BOUNDS.items() if key in schema]
    return [", ".join(bounds)] if bounds else [f"`{schema['pattern']}`"] if "pattern" in schema else []
