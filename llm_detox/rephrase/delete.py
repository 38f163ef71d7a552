"""`delete`: drop the words that make a text toxic. The baseline of Logacheva et al. 2022 (ParaDetox)."""

from __future__ import annotations

from collections.abc import Sequence

from llm_detox.rephrase.methods import Scorer
from llm_detox.rephrase.words import smallest_masks, without


class Delete:
    """The fewest words, most toxic first, without which the scorer accepts the text.

    Args:
        scorer: attributes the toxicity and judges what is left.
        below: the toxicity that the rest must come under.
        largest_share: of a text's words that may go.
    """

    name = "delete"

    def __init__(self, scorer: Scorer, *, below: float, largest_share: float) -> None:
        self._scorer = scorer
        self._below = below
        self._largest_share = largest_share

    def candidates(self, texts: Sequence[str]) -> list[list[str]]:
        """The text without its toxic words, plain and with dangling articles trimmed."""
        masks = smallest_masks(self._scorer, texts, below=self._below, largest_share=self._largest_share)
        return [deletions(text, mask) if mask else [] for text, mask in zip(texts, masks, strict=True)]


def deletions(text: str, mask: frozenset[int]) -> list[str]:
    """The distinct ways to leave the masked words out."""
    return list(dict.fromkeys([without(text, mask, trim=True), without(text, mask)]))
