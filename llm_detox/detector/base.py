"""What a detector is asked, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

UNSCORED = "unscored"
"""The detection of a text that could not be judged; its score is 1: unjudged is not harmless."""


@dataclass(frozen=True, slots=True)
class Detection:
    """A part of a content, and what it is.

    Attributes:
        start, end: code points of the content, so that `content[start:end] == text`.
        detection: an attribute of the scorer, a category of the judge, or UNSCORED.
        detection_type: the family: `toxicity` or `safety`.
        score: in [0, 1].
    """

    start: int
    end: int
    text: str
    detection: str
    detection_type: str
    score: float


@dataclass(frozen=True, slots=True)
class Offer:
    """What to say instead.

    Attributes:
        rewrite: the acceptable version; None where there is none.
        method: that wrote it.
        reason: why there is one or none, for people.
    """

    rewrite: str | None
    method: str | None
    reason: str


class Detector(Protocol):
    """Finds what nobody shall see. One thread at a time asks it.

    Attributes:
        name: for people.
        default: what is looked for where a request says nothing: detection -> threshold.
        detections: what can be asked for.
    """

    name: str
    default: Mapping[str, float]
    detections: tuple[str, ...]

    def detect(self, contents: Sequence[str], thresholds: Mapping[str, float]) -> list[list[Detection]]:
        """The detections of each content, in the order of the text.

        Raises:
            DetoxError: the scorer or the judge is dead.
        """
