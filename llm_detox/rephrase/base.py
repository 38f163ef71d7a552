"""What a rephrasing method is: toxic texts in, candidate rewrites out. Acceptance is not its business."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Scorer(Protocol):
    """The part of a toxicity scorer that rephrasing uses."""

    def score(self, texts: Sequence[str]) -> list[float | None]:
        """Toxicity of each text in [0, 1], None if it could not be scored."""
        ...


class Method(Protocol):
    """One link of the chain."""

    name: str

    def candidates(self, texts: Sequence[str]) -> list[list[str]]:
        """For each text its candidate rewrites, best guess first; an empty list if the method has none."""
        ...
