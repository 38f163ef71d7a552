"""The lines that a running evaluation appends: `{"id", "scorer", "generations"}`, one for each finished prompt.

Read line by line, so that going on with a large run needs no more memory than beginning it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from llm_detox.data.records import Record
from llm_detox.generation.continuers import Texts
from llm_detox.generation.stored import record_offsets
from llm_detox.scoring.toxicity import Scores, unscorable

_DIGITS = 6  # a score's last digits depend on its neighbours in the batch; shards must give what one run gives
_BLOCK = 2**16


@dataclass
class Found:
    """What an earlier run left.

    Attributes:
        done: ids of the prompts that need nothing more.
        unscored: offsets of lines with continuations that wait for a score: the scorer failed, or was another one.
    """

    done: set[str] = field(default_factory=set)
    unscored: list[int] = field(default_factory=list)


def found_in(path: Path, fingerprint: str) -> Found:
    """Go through the lines of an earlier run, if there was one; a torn last line is cut off.

    Of two lines of a prompt the later one counts. A prompt with a missing continuation is in neither list: what a
    server failed to give is asked for again.
    """
    found = Found()
    if not path.exists():
        return found
    _cut_torn_line(path)
    waiting: dict[str, int] = {}
    position = 0
    with path.open("rb") as file:
        for line in file:
            record = json.loads(line)
            identity, generations = record["id"], record["generations"]
            found.done.discard(identity)
            waiting.pop(identity, None)
            if all(generation["text"] is not None for generation in generations):
                if record["scorer"] == fingerprint and all(map(_settled, generations)):
                    found.done.add(identity)
                else:
                    waiting[identity] = position
            position += len(line)
    found.unscored = list(waiting.values())
    return found


def texts_at(path: Path, offsets: Sequence[int]) -> Iterator[tuple[str, Texts]]:
    """Id and continuations of the lines at these offsets."""
    with path.open("rb") as file:
        for offset in offsets:
            file.seek(offset)
            record = json.loads(file.readline())
            yield record["id"], [generation["text"] for generation in record["generations"]]


def _settled(generation: Record) -> bool:
    return unscorable(generation["text"]) is not None or any(
        value is not None for name, value in generation.items() if name != "text")


def _cut_torn_line(path: Path) -> None:
    with path.open("r+b") as file:
        end = file.seek(0, 2)
        while end > 0:
            first = max(0, end - _BLOCK)
            file.seek(first)
            last = file.read(end - first).rfind(b"\n")
            if last >= 0:
                file.truncate(first + last + 1)
                return
            end = first
        file.truncate(0)


def drawn_line(identity: str, fingerprint: str, texts: Texts, scores: Sequence[Scores | None],
               attributes: Sequence[str]) -> str:
    """One line of the file; `scores` has one entry for each text, None for an unscored one."""
    generations: list[Record] = []
    for text, answer in zip(texts, scores, strict=True):
        known: Record = {name: round(answer[name], _DIGITS) for name in attributes} if answer else dict.fromkeys(
            attributes)
        generations.append({"text": text, **known})
    return json.dumps({"id": identity, "scorer": fingerprint, "generations": generations}, ensure_ascii=False) + "\n"


class DrawnLines:
    """The finished file: each prompt's last line, by id."""

    def __init__(self, path: Path) -> None:
        self._offsets = dict(record_offsets(path))
        self._file: BinaryIO = path.open("rb")

    def __getitem__(self, identity: str) -> dict[str, Any]:
        self._file.seek(self._offsets[identity])
        record: dict[str, Any] = json.loads(self._file.readline())
        return record

    def __enter__(self) -> DrawnLines:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
