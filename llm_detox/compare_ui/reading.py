"""What scorers say of an answer: scores per attribute, the words that make it toxic, and whether it is veiled."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from llm_detox.detector.pieces import sentences_of
from llm_detox.errors import DetoxError, UsageError

if TYPE_CHECKING:
    from llm_detox.recipe.scorers import ScorerSection
    from llm_detox.scoring.base import ToxicityScorer

MARKED_FROM = 1.0  # log-odds that a word adds: from here on it makes toxic e times as likely
_WORD = re.compile(r"\S+")

Scores = Mapping[str, float]
Segment = tuple[str, float]  # a piece of text and what it adds to the log-odds; 0 if it is no marked word


class WordJudge(Protocol):
    """Says what each white-space word adds to the log-odds of being toxic."""

    def word_attributions(self, texts: Sequence[str]) -> Sequence[Sequence[tuple[str, float]]]: ...


@dataclass(frozen=True)
class Reading:
    """The scores and marked words of a text.

    Attributes:
        scores: scorer -> attribute -> score in [0, 1]; None if the scorer gave none.
        worst: the highest toxicity that any scorer gave the text or a sentence of it; None if one gave no score.
        segments: the text in pieces; joined they are the text.
    """

    scores: Mapping[str, Scores | None]
    worst: float | None
    segments: tuple[Segment, ...]


NOTHING = Reading({}, 0.0, ())


class AnswerScorer:
    """Reads texts with several scorers; threads may share it.

    Args:
        scorers: each with its own `attribute` for the veil.
        words: says which words are toxic; None marks none.
    """

    def __init__(self, scorers: Sequence[ToxicityScorer], words: WordJudge | None) -> None:
        self.scorers = dict(zip(_names(scorers), scorers, strict=True))
        self._words, self._lock = words, threading.Lock()

    @property
    def attributes(self) -> dict[str, tuple[str, ...]]:
        """Scorer -> what it scores."""
        return {name: scorer.attributes for name, scorer in self.scorers.items()}

    def read(self, text: str) -> Reading:
        """Scores of the whole text; a long harmless text must not cover up a toxic sentence, so each counts for
        the veil."""
        if not text.strip():
            return Reading({}, 0.0, ((text, 0.0),) if text else ())
        parts = [text, *(part for part in sentences_of(text) if part.strip() and part != text)]
        whole: dict[str, Scores | None] = {}
        tops: list[float | None] = []
        with self._lock:
            for name, scorer in self.scorers.items():
                rows = _scored(scorer, parts)
                whole[name] = rows[0]
                tops += [scores[scorer.attribute] if scores else None for scores in rows]
            segments = _segments(text, self._words)
        known = [top for top in tops if top is not None]
        return Reading(whole, max(known) if len(known) == len(tops) else None, segments)


def _scored(scorer: ToxicityScorer, texts: Sequence[str]) -> Sequence[Scores | None]:
    try:
        return scorer.score_attributes(texts)
    except DetoxError:  # a dead scorer: the texts are unscored, and the page says so
        return [None] * len(texts)


def _segments(text: str, judge: WordJudge | None) -> tuple[Segment, ...]:
    """The text cut at its marked words."""
    if judge is None:
        return ((text, 0.0),)
    shares = [share for _, share in judge.word_attributions([text])[0]]
    segments: list[Segment] = []
    behind = 0
    for match, share in zip(_WORD.finditer(text), shares, strict=True):
        if share >= MARKED_FROM:
            segments += [(text[behind:match.start()], 0.0), (match[0], share)]
            behind = match.end()
    return tuple(piece for piece in [*segments, (text[behind:], 0.0)] if piece[0])


def _names(scorers: Sequence[ToxicityScorer]) -> list[str]:
    """Names for people; the same kind twice is numbered."""
    names = [scorer.name for scorer in scorers]
    return [name if names.count(name) == 1 else f"{name} {names[:number + 1].count(name)}"
            for number, name in enumerate(names)]


def scorer_of(spec: str) -> ScorerSection:
    """The scorer of `KIND` or `KIND=SOURCE`, as in a recipe's `scoring`.

    Raises:
        UsageError: there is none of that kind.
    """
    from pydantic import ValidationError

    from llm_detox.recipe.scorers import ScorerSection

    kind, _, source = spec.partition("=")
    values: dict[str, Any] = {"kind": kind, "source": source or None}
    try:
        return ScorerSection.model_validate(values)
    except ValidationError:
        raise UsageError(f"there is no scorer {spec!r}", place="--scorer",
                         remedy="ngram, bilstm, transformers=SOURCE, perspective, or attributes=FOLDER that "
                                "train-scorer wrote") from None


def open_reader(specs: Sequence[ScorerSection]) -> AnswerScorer:
    """Load the scorers; words are always scored by the n-gram scorer, which knows what a word adds.

    Raises:
        DetoxError: a scorer cannot be had.
    """
    from llm_detox.scoring.load import load_scorer
    from llm_detox.scoring.ngram import NgramScorer, load_ngram_scorer

    scorers = [load_scorer(spec) for spec in specs]
    words = next((scorer for scorer in scorers if isinstance(scorer, NgramScorer)), None)
    return AnswerScorer(scorers, words or load_ngram_scorer())
