"""Reading a recipe from its file: YAML in, one checked value out, every mistake named with its place."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from llm_detox.errors import UsageError
from llm_detox.progress import visible
from llm_detox.recipe import Recipe
from llm_detox.recipe.base import OTHER, OWN, types_in

_LONGEST_FILE = 2**20  # characters
_MOST_VALUES, _DEEPEST = 10_000, 30
_TOO_MANY = f"more than {_MOST_VALUES} values, aliases counted"
_TOO_DEEP = f"values lie more than {_DEEPEST} levels deep, or hold themselves"
_MOST_MISTAKES = 20
PACKAGED_RECIPE = Path(__file__).with_name("packaged.yaml")
"""The recipe whose model, data and scorers are Python packages."""
_OCTAL = re.compile(r"0[0-9_]+")
_BRANCH = re.compile(r"constrained-\w+|literal\[.*\]|list\[.*\]|function-.*|int|float|str", re.DOTALL)
_LONGEST_KEY = 120


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML without code, without a key that silently overrides an earlier one, and of a bounded size."""

    _values = _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._values, self._depth = self._values + 1, self._depth + 1
        fault = _TOO_MANY if self._values > _MOST_VALUES else _TOO_DEEP if self._depth > _DEEPEST else None
        if fault:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, fault, mark)
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: set[str] = set()
        for key, _ in node.value:
            name = repr(self.construct_object(key, deep=True))
            if name in keys:
                raise yaml.constructor.ConstructorError(None, None, f"the key {name} appears twice", node.start_mark)
            keys.add(name)
        return super().construct_mapping(node, deep)

    def construct_number(self, node: yaml.ScalarNode) -> Any:
        """A number as it reads: YAML 1.1 takes a leading zero for octal, and colons for hours and minutes."""
        text = node.value.lstrip("+-")
        if _OCTAL.fullmatch(text) or ":" in text:
            fault = ("reads as a time: put it in quotes" if ":" in text
                     else f"has a leading zero: write {text.lstrip('0_') or '0'}, or put it in quotes")
            raise yaml.constructor.ConstructorError(None, None, f"the number {node.value} {fault}", node.start_mark)
        whole = node.tag.endswith(":int")
        return self.construct_yaml_int(node) if whole else self.construct_yaml_float(node)


for _tag in ("int", "float"):
    _UniqueKeyLoader.add_constructor(f"tag:yaml.org,2002:{_tag}", _UniqueKeyLoader.construct_number)


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
    except (ValueError, RecursionError):
        values = parse_yaml(text, "the parameter recipe")
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
        lines = list(_mistakes(error.errors()))
        more = [f"and {len(lines) - _MOST_MISTAKES} more"] if len(lines) > _MOST_MISTAKES else []
        raise UsageError("the recipe is not valid:\n  " + "\n  ".join(lines[:_MOST_MISTAKES] + more), place=place,
                         remedy="`llm-detox recipe schema` lists every key with its type and default") from None


def recipe_yaml(recipe: Recipe) -> str:
    """The whole recipe, defaults filled in, as YAML."""
    text: str = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    if visible(text) != text:  # YAML has escapes for what cannot be shown
        text = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)
    return text


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise UsageError(f"the recipe cannot be read: {error.strerror}", place=str(path),
                         remedy="the project's recipes are in recipes/") from None
    except UnicodeDecodeError:
        raise UsageError("the recipe is not UTF-8", place=str(path), remedy="save it as UTF-8") from None
    values = parse_yaml(text, str(path))
    if not isinstance(values, dict):
        raise _no_mapping(str(path))
    return values


def parse_yaml(text: str, place: str) -> Any:
    """The value of a YAML text, read without code and within limits: aliases can make gigabytes of a few lines.

    Raises:
        UsageError: it is no YAML, too long, too deep, or too large with its aliases written out.
    """
    if len(text) > _LONGEST_FILE:
        raise UsageError(f"the file has {len(text)} characters, more than {_LONGEST_FILE}", place=place,
                         remedy="settings belong here; data belongs into files of its own")
    loader = None
    try:
        loader = _UniqueKeyLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check_size(node, place)
        return loader.construct_document(node)  # type: ignore[no-untyped-call]
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        remedy = "write blanks for the tab" if "'\\t'" in str(error.problem) else "check indentation and quotes there"
        raise UsageError(f"not valid YAML: {error.problem}", place=f"{place}, line {line}", remedy=remedy) from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # a character, a date or a number that is none
        raise UsageError(f"not valid YAML: {' '.join(str(error).split()):.200}", place=place,
                         remedy="check the value, and put quotes around it if it is a text") from None
    finally:
        if loader is not None:
            loader.dispose()  # type: ignore[no-untyped-call]


def _check_size(root: yaml.Node, place: str) -> None:
    """Count the values that a document has once its aliases are written out, without writing them out.

    Raises:
        UsageError: they are too many, lie too deep, or hold themselves.
    """
    sizes: dict[int, int] = {}

    def size(node: yaml.Node, depth: int) -> int:
        if depth > _DEEPEST:
            raise UsageError(f"not valid YAML: {_TOO_DEEP}", place=place, remedy="check brackets and aliases")
        if id(node) not in sizes:
            parts = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else \
                node.value if isinstance(node, yaml.SequenceNode) else []
            total = 1 + sum(size(part, depth + 1) for part in parts)
            if total > _MOST_VALUES:
                raise UsageError(f"not valid YAML: {_TOO_MANY}", place=place,
                                 remedy="write settings alone, with few aliases")
            sizes[id(node)] = total
        return sizes[id(node)]

    size(root, 0)


def _no_mapping(place: str) -> UsageError:
    return UsageError("a recipe is a mapping of keys to values", place=place, remedy="see recipes/ for examples")


def _apply(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    parts = key.strip().split(".")
    if not separator or not all(parts):
        raise UsageError(f"{override!r} is not key=value", place="--set",
                         remedy="for example --set training.sft.learning_rate=1e-4")
    try:
        value = parse_yaml(text, "--set")
    except UsageError:
        value = text
    _put(values, key.strip(), value)


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    node, parts = values, key.split(".")
    for part in parts[:-1]:
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            raise UsageError(f"{key}: {part!r} holds no keys", place="--set", remedy="check the dotted path")
    node[parts[-1]] = value


def _mistakes(details: Sequence[ErrorDetails]) -> Iterator[str]:
    """pydantic's errors in the user's words, one for each key; where a key takes several kinds, all that was tried."""
    several: dict[str, tuple[list[str], object]] = {}
    for detail in details:
        path = [str(part) for part in detail["loc"] if part not in (OWN, OTHER)]
        branch = next((place for place, part in enumerate(path) if _BRANCH.fullmatch(part)), None)
        if branch is None:
            yield _explain(detail, path)
        else:
            messages, _ = several.setdefault(_key(path[:branch]), ([], detail["input"]))
            messages.append(_message(detail))
    for key, (messages, value) in several.items():
        yield f"{key}: {', or '.join(dict.fromkeys(messages))}, got {value!r:.60}"


def _explain(detail: ErrorDetails, path: Sequence[str]) -> str:
    key = _key(path)
    if detail["type"] == "extra_forbidden":
        allowed = _keys_at(path[:-1])
        near = difflib.get_close_matches(path[-1][:_LONGEST_KEY], allowed, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"allowed: {', '.join(allowed)}"
        return f"{key}: unknown key; {hint}"
    if detail["type"] == "missing":
        return f"{key}: this key is required"
    return f"{key}: {_message(detail)}, got {detail['input']!r:.60}" if key else _message(detail)


def _message(detail: ErrorDetails) -> str:
    if detail["type"] == "model_type":
        return "keys with values are needed"
    message = str(detail["msg"]).removeprefix("Value error, ")
    return f"{message[0].lower()}{message[1:]}"


def _key(path: Sequence[str]) -> str:
    key = ".".join(path)
    return key if len(key) <= _LONGEST_KEY else f"{key[:_LONGEST_KEY]}..."


def _keys_at(path: Iterable[str]) -> list[str]:
    """The valid keys of the section at a path."""
    section: type[BaseModel] = Recipe
    for part in path:
        field = section.model_fields.get(part)
        nested = [kind for kind in types_in(field.annotation) if issubclass(kind, BaseModel)] if field else []
        if nested:
            section = nested[0]
    return list(section.model_fields)
