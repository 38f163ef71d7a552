"""Labels that say which texts are toxic: read, counted, and refused where too many of them say nothing; and which of a
source's texts a scorer may learn from, and which a recipe may train on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from llm_detox.data.records import hash_fraction
from llm_detox.errors import DetoxError
from llm_detox.progress import say

_TOXIC, _CLEAN = {"1", "1.0", "true", "yes", "toxic", "hate"}, {"0", "0.0", "false", "no", "nothate"}
_RECIPES_SHARE = 0.2
_MOST_UNUSABLE = 0.05  # the share of texts that may be left out for their labels; more of them say the column is wrong


def read_label(label: object, place: str) -> bool | None:
    """Whether a label says that its text is toxic; None for an empty one, which says nothing.

    Raises:
        DetoxError: it is neither.
    """
    if label is None or (isinstance(label, float) and math.isnan(label)):
        return None
    value = str(label).strip().lower()
    if not value:
        return None
    if value in _TOXIC:
        return True
    if value in _CLEAN:
        return False
    raise DetoxError(f"the label {label!r} is neither toxic nor clean", place=place,
                     remedy="labels are 1 or 0, true or false; set the recipe's label_column")


def is_kept_from_scorers(key: str) -> bool:
    """Whether a text is kept from the scorers that learn from its source, so that a recipe may train on it.

    A scorer that has learnt a text's label by heart is no judge of a rewrite of that text.

    Args:
        key: see `llm_detox.data.records.same_text_key`; of the cleaned text.
    """
    return hash_fraction(key, "kept from scorers") < _RECIPES_SHARE


@dataclass
class Labels:
    """The labels of a source's texts.

    Attributes:
        known: key of a text (`llm_detox.data.records.same_text_key`) -> whether it is toxic.
        contradictory: keys of texts that have both labels; none of them can be trusted.
        unlabelled: number of texts with an empty label.
    """

    known: dict[str, bool] = field(default_factory=dict)
    contradictory: set[str] = field(default_factory=set)
    unlabelled: int = 0

    def add(self, key: str, label: bool | None) -> bool:
        """Take a text's label; returns whether it has one, and has none yet."""
        if label is None:
            self.unlabelled += 1
            return False
        if key not in self.known:
            self.known[key] = label
            return True
        if self.known[key] != label:
            self.contradictory.add(key)
        return False

    def check(self, source: str) -> None:
        """Say how many texts are left out for their labels.

        Raises:
            DetoxError: more than a twentieth of them are.
        """
        left_out, texts = self.unlabelled + len(self.contradictory), len(self.known) + self.unlabelled
        if not left_out:
            return
        counts = f"{self.unlabelled} texts have no label and {len(self.contradictory)} have both labels, of {texts}"
        if left_out > _MOST_UNUSABLE * texts:
            raise DetoxError(f"the labels cannot be trusted: {counts}; at most {_MOST_UNUSABLE:.0%} may be left out",
                             place=source, remedy="complete and correct the labels, or take the texts out")
        say(f"{source}: {counts}; they are left out")
