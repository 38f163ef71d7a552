"""Texts in pieces: sentences as they come, blocks of whole sentences, runs of words. Each knows its place."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_LONGEST_SENTENCE = 600  # characters; a text without an end would be held back for ever
# The white space after an end belongs to the sentence. A full stop between digits or letters ends none.
_END = re.compile(r"[.!?…]+[\"')\]”’]*\s+|[。！？]+[」』”’]*|\n+")
_RUN, _STEP = 10, 5  # words: long enough for an insult with its context, and for few harmless parts to look like one
_BLOCK_WORDS, _BLOCK_CHARS = 100, 2000  # what BiLSTM and people take in at once
_WORD = re.compile(r"\S+")


class Sentences:
    """Cuts a text that comes in pieces into sentences; joined they are the text again."""

    def __init__(self) -> None:
        self._rest = ""

    def feed(self, text: str) -> list[str]:
        """The sentences that are whole now."""
        self._rest += text
        sentences = []
        while end := self._next_end():
            sentences.append(self._rest[:end])
            self._rest = self._rest[end:]
        return sentences

    def end(self) -> list[str]:
        """What is left when no more comes."""
        rest, self._rest = self._rest, ""
        return [rest] if rest else []

    def _next_end(self) -> int:
        match = _END.search(self._rest)
        # An end at the very end may still grow: "Wait!" and then "!!".
        if match and match.end() < len(self._rest) and match.end() <= _LONGEST_SENTENCE:
            return match.end()
        if len(self._rest) > _LONGEST_SENTENCE:
            space = self._rest.rfind(" ", 0, _LONGEST_SENTENCE)
            return space + 1 if space > 0 else _LONGEST_SENTENCE
        return 0


def sentences_of(text: str) -> list[str]:
    """The sentences of a whole text, as a stream of it is cut."""
    cutter = Sentences()
    return [*cutter.feed(text), *cutter.end()]


@dataclass(frozen=True, slots=True)
class Place:
    """Code points `start` to `end` of a text."""

    start: int
    end: int


def trimmed(text: str, place: Place) -> Place | None:
    """The place without white space at its ends; None where nothing is left."""
    part = text[place.start:place.end]
    if not part.strip():
        return None
    return Place(place.end - len(part.lstrip()), place.start + len(part.rstrip()))


def sentence_places(text: str, within: Place) -> list[Place]:
    """Where the sentences of a part are, without white space around them."""
    places, start = [], within.start
    for sentence in sentences_of(text[within.start:within.end]):
        end = start + len(sentence)
        if place := trimmed(text, Place(start, end)):
            places.append(place)
        start = end
    return places


def blocks(text: str) -> Iterator[list[Place]]:
    """The sentences of the text in few groups, none of more than some hundred words."""
    block: list[Place] = []
    words = 0
    for place in sentence_places(text, Place(0, len(text))):
        more = len(text[place.start:place.end].split())
        if block and (words + more > _BLOCK_WORDS or place.end - block[0].start > _BLOCK_CHARS):
            yield block
            block, words = [], 0
        block.append(place)
        words += more
    if block:
        yield block


def run_places(text: str, within: Place) -> list[Place]:
    """Overlapping runs of words that cover a long sentence; none of a short one, which is taken as a whole."""
    words = [match.span() for match in _WORD.finditer(text, within.start, within.end)]
    if len(words) <= _RUN:
        return []
    firsts = (*range(0, len(words) - _RUN, _STEP), len(words) - _RUN)
    return [Place(words[first][0], words[first + _RUN - 1][1]) for first in firsts]


def runs_of_words(sentence: str) -> list[str]:
    """The texts of `run_places`, with single spaces."""
    return [" ".join(sentence[place.start:place.end].split())
            for place in run_places(sentence, Place(0, len(sentence)))]
