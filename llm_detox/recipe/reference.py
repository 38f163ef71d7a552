"""The reference of a recipe's keys as Markdown, read from the schema: docs/configuration.md."""

from __future__ import annotations

import json
import re
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from llm_detox.recipe import Recipe

_HEAD = """# The keys of a recipe

`make docs` writes this page from the schema in `llm_detox/recipe/`, and a test keeps the two the same: change the
schema, not this file.

A recipe is a YAML file with the sections below. A key that is not given has its default; keys marked *required* have
none. `--set section.key=value` sets any key on the command line, the value in YAML. `llm-detox recipe show FILE` prints
a recipe with every default filled in, `llm-detox recipe schema` prints this reference as JSON schema.

A section that is used in several places is described once. `[]` behind a name means a list of such sections, `NAME`
a name of your own.
`plugin:NAME` names something that an installed package brings, see [extending.md](extending.md).
"""
_TYPES = {"integer": "integer", "number": "number", "boolean": "`true` or `false`", "string": "text"}
_PLUGIN = r"^plugin:[A-Za-z0-9._-]+$"


def reference() -> str:
    """The whole page: a table for every section of the schema."""
    places: dict[type[BaseModel], list[str]] = {}
    _collect(Recipe, "", places)
    schema = Recipe.model_json_schema()
    titles = {kind: _title(paths) for kind, paths in places.items()}
    tables = [_section(kind, titles, schema if kind is Recipe else schema["$defs"][kind.__name__]) for kind in places]
    return "\n".join([_HEAD, *tables])


def _collect(kind: type[BaseModel], path: str, places: dict[type[BaseModel], list[str]]) -> None:
    """Where each section stands, in the order of the schema."""
    places.setdefault(kind, []).append(path)
    for name, field in kind.model_fields.items():
        for nested in _sections_in(field.annotation):
            if nested is not kind:
                kind_of_many = str(field.annotation)
                many = "[]" if "list[" in kind_of_many else ".NAME" if "dict[" in kind_of_many else ""
                _collect(nested, f"{path}.{name}{many}".lstrip("."), places)


def _sections_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and not get_args(annotation):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [kind for part in get_args(annotation) for kind in _sections_in(part)]


def _title(places: list[str]) -> str:
    return ", ".join(f"`{place}`" for place in places if place) or "The recipe itself"


def _section(kind: type[BaseModel], titles: dict[type[BaseModel], str], schema: dict[str, Any]) -> str:
    about = [_about(kind), ""] if kind is not Recipe else []
    rows = [_row(name, field, schema["properties"][name], titles) for name, field in kind.model_fields.items()]
    return "\n".join([f"## {titles[kind]}", "", *about, "| key | type | default | meaning |", "|---|---|---|---|",
                      *rows, ""])


def _about(kind: type[BaseModel]) -> str:
    return " ".join((kind.__doc__ or "").split()) if "__doc__" in vars(kind) else ""


def _row(name: str, field: FieldInfo, schema: dict[str, Any], titles: dict[type[BaseModel], str]) -> str:
    sections = _sections_in(field.annotation)
    cells = [f"`{name}`", _linked(_values(schema), [titles[kind] for kind in sections]), _default(field),
             schema.get("description") or " ".join(_about(kind) for kind in sections)]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _linked(type_name: str, titles: list[str]) -> str:
    """The word "section" as a link to the heading that describes it."""
    if not titles:
        return type_name
    anchor = re.sub(r"[^\w\- ]", "", titles[0].lower()).replace(" ", "-")
    return type_name.replace("section", f"[section](#{anchor})", 1)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "*required*"
    value = field.default
    if isinstance(value, BaseModel):
        changed = _changed(value)
        return f"`{json.dumps(changed)}`" if changed else ""
    if isinstance(value, list):
        value = [_changed(one) if isinstance(one, BaseModel) else one for one in value]
    return f"`{json.dumps(value, ensure_ascii=False)}`"


def _changed(section: BaseModel) -> dict[str, Any]:
    """What differs here from the section's own defaults."""
    return section.model_dump(mode="json", exclude_defaults=True)


def _values(schema: dict[str, Any]) -> str:
    """What a JSON schema allows, in words."""
    if "$ref" in schema:
        return "section"
    if "enum" in schema:
        return _either([f"`{value}`" for value in schema["enum"]])
    if "const" in schema:
        return f"`{schema['const']}`"
    for union in ("anyOf", "oneOf"):
        if union in schema:
            return _either([words for part in schema[union] for words in _values(part).split(" or ")])
    if schema["type"] == "array":
        return _array(schema)
    if schema["type"] == "object":
        return f"names, each with {_values(schema['additionalProperties'])}"
    if schema["type"] == "null":
        return "`null`"
    if schema["type"] == "string":
        return _text(schema)
    return " ".join([_TYPES[schema["type"]], *_bounds(schema)])


def _either(choices: list[str]) -> str:
    """"a", "a or b", "a, b or c"."""
    return " or ".join([", ".join(choices[:-1]), choices[-1]] if len(choices) > 1 else choices)


def _text(schema: dict[str, Any]) -> str:
    pattern = schema.get("pattern")
    return "`plugin:NAME`" if pattern == _PLUGIN else f"text like `{pattern}`" if pattern else _TYPES["string"]


def _array(schema: dict[str, Any]) -> str:
    if "prefixItems" in schema:
        return f"list of {len(schema['prefixItems'])}, each {_values(schema['prefixItems'][0])}"
    least = f" (at least {schema['minItems']})" if "minItems" in schema else ""
    items = _values(schema["items"])
    return f"list of {items}{'s' if items.isalpha() else ''}{least}"


def _bounds(schema: dict[str, Any]) -> list[str]:
    """"from 0 to 1", "over 0", "at least 1", and so on; of integers the least and the largest themselves."""
    whole = schema["type"] == "integer"
    least, over = schema.get("minimum"), schema.get("exclusiveMinimum")
    most, under = schema.get("maximum"), schema.get("exclusiveMaximum")
    if whole:
        least, over = (over + 1, None) if over is not None else (least, None)
        most, under = (under - 1, None) if under is not None else (most, None)
    if least is not None and most is not None:
        return [f"from {least:g} to {most:g}"]
    bounds = {"at least {:g}": least, "over {:g}": over, "at most {:g}": most, "under {:g}": under}
    words = [text.format(bound) for text, bound in bounds.items() if bound is not None]
    return [" and ".join(words)] if words else []
