"""A toxicity scorer as a detector: which parts of a content are toxic, and by which attribute.

Every sentence is scored, and every block of some hundred words, for sentences that are harmless alone need not be so
together. A long sentence that is not clearly harmless is looked at closer, in runs of ten words: a harmless surrounding
covers up less, and the span gets short. The smallest parts that reach the threshold are the detections.

A detection has the highest score of its span and of the parts in it. Where a block scores more than everything found in
it, that score belongs to the strongest of its detections, so that no threshold between the two hides the block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from llm_detox.detector.base import UNSCORED, Detection
from llm_detox.detector.mentions import excused_scores
from llm_detox.detector.pieces import Place, blocks, run_places
from llm_detox.scoring.base import Scores, ToxicityScorer

_TYPE = "toxicity"
_CLEAR = 0.1  # of a threshold: a sentence under it is not looked into


@dataclass(slots=True)
class _Part:
    content: int
    place: Place
    parts: list[_Part] = field(default_factory=list)
    scores: Scores | None = None


class ScorerDetector:
    """Finds what a toxicity scorer puts at or over a threshold."""

    def __init__(self, scorer: ToxicityScorer, threshold: float = 0.5) -> None:
        self.name = str(scorer.name)
        self.default: Mapping[str, float] = {scorer.attribute: threshold}
        self.detections = scorer.attributes
        self._scorer = scorer

    def detect(self, contents: Sequence[str], thresholds: Mapping[str, float]) -> list[list[Detection]]:
        """See `Detector.detect`; a part that cannot be scored is a detection, too."""
        top = [_block(number, sentences) for number, text in enumerate(contents) for sentences in blocks(text)]
        self._score([*top, *(sentence for block in top for sentence in block.parts)], contents, thresholds)
        long = []
        for sentence in (one for block in top for one in block.parts or [block]):
            if _suspicious(sentence.scores, thresholds):
                sentence.parts = _runs(sentence, contents[sentence.content])
                long += sentence.parts
        self._score(long, contents, thresholds)
        found: list[list[Detection]] = [[] for _ in contents]
        for block in top:
            found[block.content] += _detections(block, contents[block.content], thresholds)
        return found

    def _score(self, parts: Sequence[_Part], contents: Sequence[str], thresholds: Mapping[str, float]) -> None:
        texts = [contents[part.content][part.place.start:part.place.end] for part in parts]
        for part, scores in zip(parts, excused_scores(self._scorer.score_attributes, texts, thresholds), strict=True):
            part.scores = scores


def _block(content: int, sentences: Sequence[Place]) -> _Part:
    """With its sentences as parts, where it has several."""
    place = Place(sentences[0].start, sentences[-1].end)
    return _Part(content, place, [_Part(content, one) for one in sentences] if len(sentences) > 1 else [])


def _runs(sentence: _Part, text: str) -> list[_Part]:
    """Of a sentence that is long; two would be nearly all of it."""
    places = run_places(text, sentence.place)
    return [_Part(sentence.content, place) for place in places] if len(places) > 2 else []


def _suspicious(scores: Scores | None, thresholds: Mapping[str, float]) -> bool:
    return scores is not None and any(scores[name] >= _CLEAR * limit for name, limit in thresholds.items())


def _detections(block: _Part, text: str, thresholds: Mapping[str, float]) -> list[Detection]:
    """All detections of a block, in the order of the text."""
    found = [Detection(place.start, place.end, text[place.start:place.end], UNSCORED, _TYPE, 1.0)
             for place in _unscored(block)]
    for name, threshold in thresholds.items():
        found += [Detection(place.start, place.end, text[place.start:place.end], name, _TYPE, score)
                  for place, score in _spans(block, name, threshold)]
    return sorted(found, key=lambda one: (one.start, one.end))


def _unscored(part: _Part) -> list[Place]:
    if part.scores is None:
        return [part.place]
    return [place for smaller in part.parts for place in _unscored(smaller)]


def _spans(part: _Part, name: str, threshold: float) -> list[tuple[Place, float]]:
    """The smallest parts that reach the threshold; those that overlap are one."""
    if part.scores is None:
        return []
    spans: list[tuple[Place, float]] = []
    for place, score in (span for smaller in part.parts for span in _spans(smaller, name, threshold)):
        if spans and place.start < spans[-1][0].end:
            before, highest = spans.pop()
            place, score = replace(before, end=max(before.end, place.end)), max(highest, score)
        spans.append((place, score))
    own = part.scores[name]
    if own >= threshold and not spans:
        return [(part.place, own)]
    if spans and own > max(score for _, score in spans):
        strongest = max(range(len(spans)), key=lambda number: spans[number][1])
        spans[strongest] = (spans[strongest][0], own)
    return spans
