"""What becomes of a piece: all its texts are scored, those that are toxic go through the recipe's chain.

It depends on the piece, the recipe and nothing else, so it may be done anywhere, and again.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from llm_detox.corpus.formats import Layout, Unreadable
from llm_detox.corpus.reading import Piece
from llm_detox.corpus.statistics import Example, Figures, shortened
from llm_detox.data.records import Record
from llm_detox.rephrase.build import MethodFactory
from llm_detox.rephrase.detoxify import CHUNK
from llm_detox.scoring.base import ToxicityScorer

_EXAMPLES = 3


@dataclass
class Outcome:
    """What became of a piece.

    Attributes:
        data: the piece as it is to be written.
        problem: the first record that could not be read, and why.
        score_seconds, rewrite_seconds: how long it took; no part of the result.
    """

    data: bytes
    figures: Figures
    examples: list[Example] = field(default_factory=list)
    problem: str | None = None
    score_seconds: float = 0.0
    rewrite_seconds: float = 0.0


class Cleaner:
    """Works on pieces with the scorer and the methods of a recipe, loaded when the first piece needs them."""

    def __init__(self, workshop: MethodFactory, threshold: float) -> None:
        self._workshop = workshop
        self._threshold = threshold

    def clean(self, piece: Piece, layout: Layout) -> Outcome:
        """The piece, cleaned.

        Raises:
            DetoxError: most of its records cannot be read, or a model or scorer cannot be loaded.
        """
        before = layout.texts(piece)
        figures = Figures(lines=piece.count, repeated=len(piece.repeated))
        bad = [one for place, one in enumerate(before)
               if isinstance(one, Unreadable) and place not in piece.repeated]
        figures.unreadable = len(bad)
        if 2 * len(bad) > len(before):  # the format or the column is another one
            raise bad[0].error
        texts = {place: text for place, text in enumerate(before)
                 if isinstance(text, str) and place not in piece.repeated}
        started = time.perf_counter()
        foreign = {place: text for place, text in texts.items() if self._is_foreign(text, figures)}
        texts = {place: text for place, text in texts.items() if place not in foreign}
        scores = self._scores(texts, figures)
        scored = time.perf_counter()
        rewrites = self._rewritten(texts, scores)
        after = {**self._after(texts, scores, rewrites, figures), **foreign}
        examples = [_example(layout.name, record) for _, record in sorted(rewrites.items())
                    if record["action"] == "rewritten"][:_EXAMPLES]
        data = layout.written(piece, [after.get(place) for place in range(len(before))], before)
        return Outcome(data, figures, examples, str(bad[0].error.message) if bad else None, scored - started,
                       time.perf_counter() - scored)

    def _is_foreign(self, text: str, figures: Figures) -> bool:
        language = self._workshop.languages.foreign(text)
        figures.foreign += language is not None
        figures.languages.update([language] if language else [])
        return language is not None

    def _scores(self, texts: Mapping[int, str], figures: Figures) -> dict[int, float | None]:
        scorer = self._workshop.scorer
        if not isinstance(scorer, ToxicityScorer):
            return dict(zip(texts, scorer.score(list(texts.values())), strict=True))
        rows = scorer.score_attributes(list(texts.values()))
        for row in rows:
            figures.attributes.update({name: int(value >= self._threshold) for name, value in (row or {}).items()})
        return {place: row[scorer.attribute] if row else None for place, row in zip(texts, rows, strict=True)}

    def _rewritten(self, texts: Mapping[int, str], scores: Mapping[int, float | None]) -> dict[int, Record]:
        """The audit trail of each toxic text. Texts of like length are worked on together, the same text once."""
        places: dict[str, list[int]] = {}
        for place, text in texts.items():
            if (score := scores[place]) is not None and score >= self._threshold:
                places.setdefault(text, []).append(place)
        order = sorted(places, key=lambda text: (len(text), text))
        found: dict[int, Record] = {}
        for first in range(0, len(order), CHUNK):
            chunk = order[first:first + CHUNK]
            self._workshop.start_afresh()
            records = self._workshop.chain.run_scored(
                [{"id": "", "text": text} for text in chunk], [scores[places[text][0]] for text in chunk])
            for text, record in zip(chunk, records, strict=True):
                found |= dict.fromkeys(places[text], record)
        return found

    def _after(self, texts: Mapping[int, str], scores: Mapping[int, float | None], rewrites: Mapping[int, Record],
               figures: Figures) -> dict[int, str]:
        """The text that stays in each place; the figures take in what became of the others."""
        after: dict[int, str] = {}
        for place, text in texts.items():
            record = rewrites.get(place)
            if record is None and scores[place] is None:
                figures.unscored += 1
                continue
            action = "kept" if record is None else record["action"]
            figures.toxic += record is not None
            setattr(figures, action, getattr(figures, action) + 1)
            if record is not None and record["method"]:
                figures.methods[record["method"]] += 1
            if action != "dropped":
                after[place] = text if record is None else record["text"]
        return after


def _example(name: str, record: Record) -> Example:
    scores: Mapping[str, float] = record["scores"]
    return Example(name, shortened(record["original"]), shortened(record["text"]), scores["toxicity_before"],
                   scores["toxicity_after"])
