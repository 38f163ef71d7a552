"""Tiny data with the columns that a recipe names: made-up sentences, rude and friendly ones."""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from llm_detox.data.records import Record, write_jsonl

ROWS = 32
_PEOPLE = ["the baker", "my neighbour", "the driver", "her teacher", "the clerk", "our landlord", "the new nurse"]
_THINGS = ["the garden", "the old bridge", "this paper", "the evening train", "the soup", "our roof", "the long letter"]
_DEEDS = ["looked after", "talked about", "wrote about", "forgot", "mended", "walked past", "waited for"]
_KIND = ["a good friend to all of us", "a quiet and careful person", "glad to be of help", "always on time"]
_RUDE = ["a stupid idiot", "a filthy moron", "a damn fool", "a worthless piece of trash", "an ugly stupid pig"]
_TIMES = ["on a cold morning", "in the afternoon", "last summer", "after the rain", "before the holidays"]


def sentence(number: int, *, toxic: bool, seed: int = 0) -> str:
    """A sentence of about a dozen words, its own for every number and seed."""
    chance = random.Random(f"{seed} {number} {toxic}")  # noqa: S311 - words, no secret
    who, what, deed, when = (chance.choice(words) for words in (_PEOPLE, _THINGS, _DEEDS, _TIMES))
    judged = chance.choice(_RUDE if toxic else _KIND)
    return f"{when.capitalize()} {who} {deed} {what}, number {number}, and you are {judged}."


def with_columns(values: dict[str, Any]) -> Record:
    """A record with the named columns; dots make nested records."""
    record: Record = {}
    for name, value in values.items():
        node, parts = record, name.split(".")
        for part in parts[:-1]:
            node = node.setdefault(part, {})
        node[parts[-1]] = value
    return record


def table(path: Path, columns: Iterable[dict[str, Any]]) -> str:
    """Write the records as JSON lines; returns the path as a recipe's source."""
    write_jsonl(path, (with_columns(values) for values in columns))
    return str(path)


def rude_half(number: int) -> bool:
    """Whether the row of that number is a rude one."""
    return number % 2 == 0
