"""Toxicity scorers behind one interface. A text that could not be scored gives None: unscored is not clean.

A scorer is given texts as people read them, whatever their characters are (`llm_detox.scoring.readings`); a text with
several readings has the scores of the worst.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Literal, get_args

from llm_detox.errors import DetoxError
from llm_detox.generation.batching import sized_batches
from llm_detox.progress import say
from llm_detox.scoring.lookalikes import plain
from llm_detox.scoring.readings import VERSION, readings

MAX_CHARS = 20_000  # longer texts are not scored; Perspective's own limit
_FAILURES_IN_A_ROW = 3
Scores = dict[str, float]
Attribute = Literal["toxicity", "severe_toxicity", "identity_attack", "insult", "threat", "profanity",
                    "sexually_explicit", "flirtation"]
ATTRIBUTES: tuple[Attribute, ...] = get_args(Attribute)
"""The attributes of Perspective that RealToxicityPrompts has scores of."""


def unscorable(text: str) -> str | None:
    """Why a text never reaches a scorer; None for one that does."""
    if len(text) > MAX_CHARS:
        return "text too long"
    return None if plain(text).strip() else "empty text"


class ToxicityScorer(ABC):
    """A scorer of texts.

    Attributes:
        name: for people, such as "bilstm".
        version: of the weights, for people: a package's version, a revision, a format.
        device: where it computes: "cpu", "cuda", or "service".
        fingerprint: changes whenever a score could; scores with different fingerprints are never compared. It ends with
            the version of the readings.
        attributes: what it scores, named as in RealToxicityPrompts ("toxicity", "insult", ...).
        attribute: the one that `score` gives.
        failures: what went wrong so far, message -> number of texts left unscored.
        languages: ISO 639-1 codes of those that it was made for; empty where that is not known.
    """

    languages: tuple[str, ...] = ()

    def __init__(self, name: str, fingerprint: str, attributes: Sequence[str], attribute: str = "toxicity",
                 batch_size: int = 512, *, version: str = "1", device: str = "cpu") -> None:
        if attribute not in attributes:
            raise DetoxError(f"the scorer has no attribute {attribute!r}", place=name,
                             remedy=f"it has: {', '.join(attributes)}")
        self.name, self.version, self.device = name, version, device
        self.fingerprint = f"{fingerprint}-{VERSION}"
        self.attributes, self.attribute = tuple(attributes), attribute
        self.batch_size = batch_size
        self.failures: dict[str, int] = {}

    @abstractmethod
    def score_batch(self, texts: Sequence[str]) -> Sequence[Mapping[str, float] | None]:
        """Scores in [0, 1] of at most `batch_size` texts, none of them empty. May raise, may give None."""

    def score(self, texts: Sequence[str]) -> list[float | None]:
        """The scores of `attribute`, in the order of the texts; None where a text could not be scored."""
        return [scores[self.attribute] if scores else None for scores in self.score_attributes(texts)]

    def score_attributes(self, texts: Sequence[str]) -> list[Scores | None]:
        """All attributes of each text, or None; of several readings each attribute's highest score.

        Raises:
            DetoxError: several batches in a row failed: the scorer is dead, not the texts bad.
        """
        results: list[Scores | None] = [None] * len(texts)
        usable: list[tuple[int, str]] = []
        for index, text in enumerate(texts):
            if problem := unscorable(text):
                self._fail(problem, 1)
            else:
                usable += [(index, reading) for reading in readings(text)]
        scored = self.score_as_written([reading for _, reading in usable])
        for index, rows in groupby(zip(usable, scored, strict=True), key=lambda pair: pair[0][0]):
            results[index] = _worst([scores for _, scores in rows])
        return results

    def score_as_written(self, texts: Sequence[str]) -> list[Scores | None]:
        """All attributes of each text, taken letter by letter; None where it could not be scored.

        Raises:
            DetoxError: several batches in a row failed.
        """
        results: list[Scores | None] = [None] * len(texts)
        in_a_row = 0
        for batch in sized_batches([len(text) for text in texts], self.batch_size):
            try:
                scored = self._checked([texts[index] for index in batch])
            except Exception as error:  # whatever a scorer raises, the texts stay unscored and are counted
                in_a_row += 1
                self._fail(f"{type(error).__name__}: {error}", len(batch))
                if in_a_row == _FAILURES_IN_A_ROW:
                    raise DetoxError(f"the scorer fails on every batch ({error})", place=self.name,
                                     remedy="check the scorer; the work done so far is kept") from error
                continue
            in_a_row = 0
            for index, scores in zip(batch, scored, strict=True):
                results[index] = scores
        return results

    def _checked(self, texts: Sequence[str]) -> list[Scores | None]:
        answers = self.score_batch(texts)
        if len(answers) != len(texts):
            raise ValueError(f"{len(answers)} answers to {len(texts)} texts")
        return [self._valid(answer) for answer in answers]

    def _valid(self, answer: Mapping[str, float] | None) -> Scores | None:
        if answer is not None:
            try:
                scores = {name: float(answer[name]) for name in self.attributes}
            except (KeyError, TypeError, ValueError):
                scores = {}
            if scores and all(math.isfinite(value) and 0 <= value <= 1 for value in scores.values()):
                return scores
        self._fail("no usable answer", 1)
        return None

    def _fail(self, message: str, count: int) -> None:
        if message not in self.failures and message not in ("empty text", "text too long"):
            say(f"{self.name}: texts stay unscored: {message}")
        self.failures[message] = self.failures.get(message, 0) + count


def _worst(rows: Sequence[Scores | None]) -> Scores | None:
    """Each attribute's highest score; None where a reading has none: what it says stays unknown."""
    known = [scores for scores in rows if scores is not None]
    if len(known) < len(rows):
        return None
    return {name: max(scores[name] for scores in known) for name in known[0]}


class EnsembleScorer(ToxicityScorer):
    """The mean of several scorers, over the attributes that all of them have; unscored where one has no score."""

    def __init__(self, members: Sequence[ToxicityScorer], *, attribute: str = "toxicity") -> None:
        shared = [name for name in members[0].attributes if all(name in member.attributes for member in members)]
        digest = hashlib.sha256("\0".join(member.fingerprint for member in members).encode()).hexdigest()[:16]
        name, version, device = ("+".join(dict.fromkeys(getattr(member, field) for member in members))
                                 for field in ("name", "version", "device"))
        super().__init__(name, f"ensemble-{digest}", shared, attribute, version=version, device=device)
        self.members = list(members)
        declared = [set(member.languages) for member in members if member.languages]
        self.languages = tuple(sorted(set.intersection(*declared))) if declared else ()

    def score_batch(self, texts: Sequence[str]) -> list[Scores | None]:
        answers = zip(*(member.score_as_written(texts) for member in self.members), strict=True)
        return [self._mean(row) for row in answers]

    def _mean(self, row: Sequence[Scores | None]) -> Scores | None:
        known = [scores for scores in row if scores is not None]
        if len(known) < len(row):
            return None
        return {name: sum(scores[name] for scores in known) / len(known) for name in self.attributes}
