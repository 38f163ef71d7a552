"""Texts in a language that a scorer was not made for: its scores of them mean nothing, so they are told apart first.

The detector is py3langid, the classifier of Lui and Baldwin (2012, "langid.py") with probabilities. Only a text that is
surely in none of the wanted languages counts as foreign: short and misspelt English is scored, as before.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.util import find_spec
from typing import Protocol

from llm_detox.progress import say
from llm_detox.scoring.readings import readings

SURELY_NOT = 0.02
"""A text whose wanted languages have less probability together is foreign."""
_LETTERS = 12  # shorter texts are names and cries, which are the same in many languages
_ALSO = {"en": ("pcm",)}  # the detector takes much of the English of social media for Nigerian Pidgin
_MAIN_SHARE = 0.05
# A text with two of these is English, and the detector, which reads some thousand texts a second, need not be asked:
# none of them is a common word of another language in Latin letters.
_COMMON = {"en": frozenset((
    "the", "and", "you", "that", "this", "with", "are", "have", "they", "what", "your", "not", "who", "their", "would",
    "there", "because", "about", "just", "don't", "it's", "i'm", "been", "were", "when", "people"))}
_ENOUGH = 2
_ENOUGH_CHARS = 300  # tell the language of a longer text


class Detector(Protocol):
    """Ranks languages; py3langid's identifier."""

    def rank(self, text: str) -> list[tuple[str, float]]:
        """(ISO 639 code, probability) of all languages, the likeliest first."""


class LanguageCheck:
    """Tells texts that are in none of some languages.

    Args:
        languages: ISO 639-1 codes; none at all lets every text pass.
    """

    def __init__(self, languages: Sequence[str]) -> None:
        self.languages = tuple(languages)
        self._detector = _detector() if languages else None
        self._wanted = {code for language in languages for code in (language, *_ALSO.get(language, ()))}
        self._common = frozenset().union(*(_COMMON.get(language, ()) for language in languages))

    def foreign(self, text: str) -> str | None:
        """The language of a text that is surely in none of those wanted; None for all others.

        A text is wanted as soon as one of its readings is, so that a disguise makes nothing foreign.
        """
        if self._detector is None or len(self._common.intersection(text.lower().split())) >= _ENOUGH:
            return None
        found = None
        for reading in reversed(readings(text[:_ENOUGH_CHARS])):
            if _letters(reading) < _LETTERS:
                return None
            ranked = self._detector.rank(reading)
            if sum(share for code, share in ranked if code in self._wanted) >= SURELY_NOT:
                return None
            found = ranked[0][0]
        return found


def main_languages(texts: Iterable[str]) -> tuple[str, ...]:
    """The languages that many of the texts are in, the most frequent first; empty where none can be told."""
    detector = _detector()
    if detector is None:
        return ()
    also = {code: language for language, codes in _ALSO.items() for code in codes}
    found = Counter(detector.rank(text)[0][0] for text in texts if _letters(text) >= _LETTERS)
    counts: Counter[str] = Counter()
    for code, count in found.items():
        counts[also.get(code, code)] += count
    return tuple(code for code, count in counts.most_common() if count >= _MAIN_SHARE * found.total())


def _letters(text: str) -> int:
    """Letters and the marks that belong to them, such as the vowel signs of Hindi."""
    return sum(unicodedata.category(char)[0] in "LM" for char in text)


@cache
def _detector() -> Detector | None:
    if find_spec("py3langid") is None:
        say("languages are not told apart, and all texts are scored: `pip install --no-deps py3langid` tells them")
        return None
    from py3langid import langid

    detector: Detector = langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)
    return detector
