"""Writes a rewrite down as people print text: what collections of comments split and lower is joined and capitalised.

Comments come tokenised ("don 't", a space before each comma) and in lower case, and a word that was taken out leaves
doubled commas and spaces behind. The words stay as they are.
"""

from __future__ import annotations

import re

_RULES: list[tuple[re.Pattern[str], str]] = [
    (re.compile(r"\s+"), " "),
    (re.compile(r"(?<=\w) ?(['’]) ?(?=(?:s|t|m|d|re|ve|ll)\b)", re.IGNORECASE), r"\1"),  # don 't, it ' s
    (re.compile(r"(?<=\w) (?=n['’]t\b)", re.IGNORECASE), ""),  # do n't
    (re.compile(r" +(?=[,.!?;:%)\]])"), ""),
    (re.compile(r"(?<=[(\[]) +"), ""),
    (re.compile(r"([,;:])(?: ?[,;:])+(?=\s|$)"), r"\1"),  # what a deleted word stood between
    (re.compile(r"[,;:]+(?=[.!?])"), ""),
    (re.compile(r"^[\s,;:.!?]+(?=\w)"), ""),
    (re.compile(r"[\s,;:]+$"), ""),
    (re.compile(r"\bi\b(?![.’'](?!(?:m|d|ll|ve)\b))"), "I"),  # not the one of "i.e."
]
_STARTS = re.compile(r"(?:^|(?<=[!?] )|(?<=\w\w\. ))(\W*)([a-z])(?!\w*[.:/@]\w)")  # not behind "i.e.", no address
_UNFINISHED = re.compile(r"[^\W_][)\]]?$")
_FEWEST_WORDS = 3


def tidy(text: str) -> str:
    """The text with joined contractions and punctuation, capitals where sentences begin, and a final stop.

    A text of less than three words gets no stop: it is a title or a cry as likely as a sentence.
    """
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    text = _STARTS.sub(lambda found: found[1] + found[2].upper(), text.strip())
    ends_open = _UNFINISHED.search(text) and len(text.split()) >= _FEWEST_WORDS
    return text + "." if ends_open else text
