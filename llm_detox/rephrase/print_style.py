"""Writes a rewrite down as people print text: what collections of comments split and lower is joined and capitalised.

Comments come tokenised ("don 't", a space before each comma) and in lower case, and a word that was taken out leaves
doubled commas and spaces behind. The words stay as they are, but for the apostrophe that "dont" and "im" lack.
Quotation marks and apostrophes are straight ones, as in the comments: what a model learnt from books curls them, and a
language model that reads them scores the mark and not the words.
"""

from __future__ import annotations

import re

_STRAIGHT = str.maketrans("‘’‚‛“”„‟", "'" * 4 + '"' * 4)
_RULES: list[tuple[re.Pattern[str], str]] = [
    (re.compile(r"\s+"), " "),
    (re.compile(r"(?<=\w) ?' ?(?=(?:s|t|m|d|re|ve|ll)\b)", re.IGNORECASE), "'"),  # don 't, it ' s
    (re.compile(r"(?<=\w) (?=n't\b)", re.IGNORECASE), ""),  # do n't
    (re.compile(r" +(?=[,.!?;:%)\]])"), ""),
    (re.compile(r"(?<=[(\[]) +"), ""),
    (re.compile(r"([,;:])(?: ?[,;:])+(?=\s|$)"), r"\1"),  # what a deleted word stood between
    (re.compile(r"[,;:]+(?=[.!?])"), ""),
    (re.compile(r"^[\s,;:.!?]+(?=\w)"), ""),
    (re.compile(r"[\s,;:]+$"), ""),
    (re.compile(r"\bi\b(?![.'](?!(?:m|d|ll|ve)\b))"), "I"),  # not the one of "i.e."
]
# Those whose letters alone are no other word: "its", "ill", "were" and "lets" stay.
_CONTRACTIONS = {word.replace("'", "").lower(): word for word in [
    *(verb + "n't" for verb in ["ai", "are", "ca", "could", "did", "does", "do", "had", "has", "have", "is", "should",
                                "was", "were", "wo", "would"]),
    *(word + "'ll" for word in ["it", "they", "you"]), *(word + "'re" for word in ["they", "you"]),
    *(word + "'s" for word in ["he", "she", "that", "there", "what"]),
    *(word + "'ve" for word in ["I", "they", "we", "you"]), "I'm",
]}
_UNMARKED = re.compile(rf"\b(?!(?-i:IM)\b|wont to\b)(?:{'|'.join(_CONTRACTIONS)})\b(?!')", re.IGNORECASE)
_STARTS = re.compile(r"(?:^|(?<=[!?] )|(?<=\w\w\. ))(\W*)([a-z])(?!\w*[.:/@]\w)")  # not behind "i.e.", no address
_UNFINISHED = re.compile(r"[^\W_][)\]]?$")
_FEWEST_WORDS = 3


def as_printed(text: str) -> str:
    """The text with contractions joined, straight marks, capitals where sentences begin, and a final stop.

    A text of less than three words gets no stop: it is a title or a cry as likely as a sentence.
    """
    text = text.translate(_STRAIGHT)
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    text = _UNMARKED.sub(lambda found: _contraction(found[0]), text)
    text = _STARTS.sub(lambda found: found[1] + found[2].upper(), text.strip())
    ends_open = _UNFINISHED.search(text) and len(text.split()) >= _FEWEST_WORDS
    return text + "." if ends_open else text


def _contraction(letters: str) -> str:
    """dont -> don't, Dont -> Don't, DONT -> DON'T."""
    word = _CONTRACTIONS[letters.lower()]
    if letters.isupper():
        return word.upper()
    return word[0].upper() + word[1:] if letters[0].isupper() else word
