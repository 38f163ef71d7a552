"""What cleaning a corpus will come to, from a sample of it: shares, lines a second, hours.

The whole corpus is read once and its lines are counted; every line has the same chance to be in the sample (reservoir
sampling; Vitter 1985). The sample is worked on by as many processes as the whole will be, with the models loaded.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

from scipy.stats import binomtest

from llm_detox.corpus.clean import CorpusSettings
from llm_detox.corpus.formats import JsonLines, Layout, layout_of
from llm_detox.corpus.inputs import CorpusFile, corpus_files
from llm_detox.corpus.reading import Piece, pieces
from llm_detox.corpus.statistics import Figures
from llm_detox.corpus.workers import cleaned
from llm_detox.errors import UsageError
from llm_detox.recipe import Recipe


@dataclass(frozen=True)
class DryRun:
    """What is to be expected.

    Attributes:
        files, lines: of the whole corpus.
        sample: lines that were tried.
        share_toxic: of the sample's lines, with its 95 % interval (Wilson).
        kept, rewritten, dropped, foreign, unscored, unreadable: shares of the sample's lines.
        attributes: attribute -> share of the sample's lines at or over the threshold.
        clean_lines_per_second: that one worker scores.
        rewrites_per_second: that one worker tries.
        hours: for the whole, by so many workers; low and high at the ends of the share's interval.
        core_hours: the same times the workers.
    """

    files: int
    lines: int
    sample: int
    share_toxic: float
    share_toxic_low: float
    share_toxic_high: float
    kept: float
    rewritten: float
    dropped: float
    foreign: float
    unscored: float
    unreadable: float
    attributes: dict[str, float]
    clean_lines_per_second: float
    rewrites_per_second: float | None
    workers: int
    hours: float
    hours_low: float
    hours_high: float
    core_hours: float


def dry_run(recipe: Recipe, source: str, settings: CorpusSettings, count: int) -> DryRun:
    """Clean a sample, write nothing, and say what the whole will come to.

    Args:
        count: lines of the sample.

    Raises:
        UsageError: there is no corpus, or no line in it.
    """
    files, _ = corpus_files(source)
    sample, lines = _sample(files, settings, count, random.Random(recipe.seed))  # noqa: S311 - no secret
    if not sample:
        raise UsageError("the corpus has no line", place=source, remedy="give files with records")
    layout = JsonLines("the sample", "text")
    size = math.ceil(len(sample) / settings.workers)
    parts = [(_piece(sample[first:first + size]), layout) for first in range(0, len(sample), size)]
    figures, scoring, rewriting = Figures(), 0.0, 0.0
    for _, outcome in cleaned(recipe, parts, settings.workers, warm=True):
        figures.add(outcome.figures)
        scoring += outcome.score_seconds
        rewriting += outcome.rewrite_seconds
    return _expected(figures, scoring, rewriting, len(files), lines, settings.workers)


def _expected(figures: Figures, scoring: float, rewriting: float, files: int, lines: int, workers: int) -> DryRun:
    tried = figures.lines
    low, high = binomtest(figures.toxic, tried).proportion_ci(0.95, method="wilson")
    each_line = scoring / tried
    each_toxic = rewriting / figures.toxic if figures.toxic else 0.0

    def hours(share: float) -> float:
        return round(lines * (each_line + share * each_toxic) / workers / 3600, 4)

    def share(number: int) -> float:
        return round(number / tried, 4)

    whole = hours(figures.toxic / tried)
    return DryRun(
        files, lines, tried, share(figures.toxic), round(low, 4), round(high, 4), share(figures.kept),
        share(figures.rewritten), share(figures.dropped), share(figures.foreign), share(figures.unscored),
        share(figures.unreadable),
        {name: share(number) for name, number in sorted(figures.attributes.items())},
        round(1 / each_line, 1), round(1 / each_toxic, 2) if each_toxic else None, workers, whole, hours(low),
        hours(high), round(whole * workers, 4))


def _sample(files: list[CorpusFile], settings: CorpusSettings, count: int,
            chance: random.Random) -> tuple[list[object], int]:
    """Texts of the sample, in the order of the corpus where it is whole, and the number of all lines.

    What has no text stays in it, as something else than a string: such lines have their share, too.
    """
    held: list[object] = []
    lines = 0
    for piece, layout in _all(files, settings):
        chosen: dict[int, int] = {}  # place in the piece -> place in the sample
        for place in range(piece.count):
            slot = lines if lines < count else chance.randrange(lines + 1)
            if slot < count:
                chosen[place] = slot
            lines += 1
        if chosen:
            texts = layout.texts(piece)
            for place, slot in chosen.items():
                text = texts[place]
                value = text if isinstance(text, str) else None
                held[slot:slot + 1] = [value]
    return held, lines


def _all(files: list[CorpusFile], settings: CorpusSettings) -> Iterator[tuple[Piece, Layout]]:
    for number, file in enumerate(files):
        layout: Layout | None = None
        for piece in pieces(file, number, settings.piece):
            layout = layout or layout_of(file, settings.text, piece.header)
            yield piece, layout


def _piece(texts: list[object]) -> Piece:
    records = tuple((json.dumps({"text": text}) + "\n").encode() for text in texts)
    return Piece(0, 0, 1, records, len(records), 0)
