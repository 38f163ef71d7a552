"""Reading a recipe from its file: YAML in, one checked value out, every mistake named with its place."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from llm_detox.errors import UsageError
from llm_detox.recipe import Recipe
from llm_detox.recipe.base import OTHER, OWN


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML without code, and without a key that silently overrides an earlier one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} appears twice", node.start_mark)
        return super().construct_mapping(node, deep)


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe.

    Args:
        path: the YAML file.
        overrides: `dotted.key=value` each, the value in YAML, applied before the check.

    Raises:
        UsageError: the file cannot be read, or something in it is wrong; each mistake is named by its
            key's path, with what is allowed and, for an unknown key, the nearest valid name.
    """
    values = _read_yaml(path)
    for override in overrides:
        _apply(values, override)
    return check_recipe(values, str(path))


def resolve_recipe(text: str, *, changes: Mapping[str, Any] | None = None, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe that came as text: the parameter of a pipeline.

    Args:
        text: JSON, or the YAML of a recipe file.
        changes: dotted key -> value; an empty string changes nothing.
        overrides: `dotted.key=value` each, applied last.

    Raises:
        UsageError: as `load_recipe`.
    """
    try:
        values = json.loads(text)
    except ValueError:
        values = _parse_yaml(text, "the parameter recipe")
    if not isinstance(values, dict):
        raise _no_mapping("the parameter recipe")
    for key, value in (changes or {}).items():
        if value != "":
            _put(values, key, value)
    for override in overrides:
        _apply(values, override)
    return check_recipe(values, "the parameter recipe")


def check_recipe(values: dict[str, Any], place: str) -> Recipe:
    """Check plain values against the schema; `place` is named in the errors."""
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        lines = [_explain(detail) for detail in error.errors()]
        raise UsageError("the recipe is not valid:\n  " + "\n  ".join(lines), place=place,
                         remedy="`llm-detox recipe schema` lists every key with its type and default") from None


def recipe_yaml(recipe: Recipe) -> str:
    """The whole recipe, defaults filled in, as YAML."""
    text: str = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    return text


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise UsageError(f"the recipe cannot be read: {error.strerror}", place=str(path),
                         remedy="the project's recipes are in recipes/") from None
    except UnicodeDecodeError:
        raise UsageError("the recipe is not UTF-8", place=str(path), remedy="save it as UTF-8") from None
    values = _parse_yaml(text, str(path))
    if not isinstance(values, dict):
        raise _no_mapping(str(path))
    return values


def _parse_yaml(text: str, place: str) -> Any:
    try:
        return yaml.load(text, Loader=_UniqueKeyLoader)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        raise UsageError(f"not valid YAML: {error.problem}", place=f"{place}, line {line}",
                         remedy="check indentation and quotes there") from None


def _no_mapping(place: str) -> UsageError:
    return UsageError("a recipe is a mapping of keys to values", place=place, remedy="see recipes/ for examples")


def _apply(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    parts = key.strip().split(".")
    if not separator or not all(parts):
        raise UsageError(f"{override!r} is not key=value", place="--set",
                         remedy="for example --set training.sft.learning_rate=1e-4")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    _put(values, key.strip(), value)


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    node, parts = values, key.split(".")
    for part in parts[:-1]:
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            raise UsageError(f"{key}: {part!r} holds no keys", place="--set", remedy="check the dotted path")
    node[parts[-1]] = value


def _explain(detail: Any) -> str:
    """One pydantic error in the user's words."""
    path = [str(part) for part in detail["loc"] if part not in (OWN, OTHER)]
    key = ".".join(path)
    if detail["type"] == "extra_forbidden":
        allowed = _keys_at(path[:-1])
        near = difflib.get_close_matches(path[-1], allowed, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"allowed: {', '.join(allowed)}"
        return f"{key}: unknown key; {hint}"
    if detail["type"] == "missing":
        return f"{key}: this key is required"
    message = str(detail["msg"]).removeprefix("Value error, ")
    return f"{key}: {message[0].lower()}{message[1:]}, got {detail['input']!r:.60}" if key else message


def _keys_at(path: Iterable[str]) -> list[str]:
    """The valid keys of the section at a path."""
    section: type[BaseModel] = Recipe
    for part in path:
        field = section.model_fields.get(part)
        nested = [kind for kind in _types_in(field.annotation) if issubclass(kind, BaseModel)] if field else []
        if nested:
            section = nested[0]
    return list(section.model_fields)


def _types_in(annotation: Any) -> list[type]:
    """Every class named in an annotation, `list[Table]` and unions included."""
    if isinstance(annotation, type) and not get_args(annotation):
        return [annotation]
    return [kind for part in get_args(annotation) for kind in _types_in(part)]
