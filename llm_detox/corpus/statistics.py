"""What became of a corpus, in numbers that are added up piece by piece; and a few examples of what was rewritten.

Nothing in it depends on when or by how many processes the work was done: an interrupted run has the same figures.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

EXAMPLES = 10
_LONGEST_EXAMPLE = 300


@dataclass(frozen=True)
class Example:
    """A text that was rewritten, both versions cut to a few lines."""

    file: str
    before: str
    after: str
    toxicity_before: float
    toxicity_after: float


@dataclass
class Figures:
    """What became of some lines.

    Attributes:
        lines: all of them.
        kept: left as they were: scored under the threshold, or toxic where the recipe keeps what it cannot rewrite.
        rewritten: toxic, and replaced by an acceptable version.
        dropped: toxic, and no method had an acceptable version.
        foreign: in a language that the scorer was not made for: not scored, and left as they were.
        unscored: without a score, so not known to be clean; they are left out.
        repeated: their text came before; they are left out where that was asked for.
        unreadable: no record, or without a text; they are left out.
        toxic: at or over the recipe's threshold, whatever became of them.
        attributes: attribute -> lines at or over the threshold, of those that were scored.
        methods: method -> lines that it rewrote.
        languages: language -> foreign lines in it.
    """

    lines: int = 0
    kept: int = 0
    rewritten: int = 0
    dropped: int = 0
    foreign: int = 0
    unscored: int = 0
    repeated: int = 0
    unreadable: int = 0
    toxic: int = 0
    attributes: Counter[str] = field(default_factory=Counter)
    methods: Counter[str] = field(default_factory=Counter)
    languages: Counter[str] = field(default_factory=Counter)

    @property
    def scored(self) -> int:
        return self.kept + self.rewritten + self.dropped

    @property
    def written(self) -> int:
        return self.kept + self.rewritten + self.foreign

    @property
    def share_toxic(self) -> float | None:
        """Of the scored lines; None where there are none."""
        return round(self.toxic / self.scored, 6) if self.scored else None

    def add(self, other: Figures) -> None:
        """Take in the figures of other lines."""
        for name, value in vars(other).items():
            if isinstance(value, Counter):
                getattr(self, name).update(value)
            else:
                setattr(self, name, getattr(self, name) + value)

    def as_dict(self) -> dict[str, object]:
        """The figures and their shares, for JSON."""
        numbers = {name: dict(sorted(value.items())) if isinstance(value, Counter) else value
                   for name, value in vars(self).items()}
        return {**numbers, "written": self.written, "share_toxic": self.share_toxic}

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Figures:
        """From what `as_dict` gave."""
        own = {name: values[name] for name in cls.__dataclass_fields__}
        counters = {name: Counter(own[name]) for name in ("attributes", "methods", "languages")}
        return cls(**{**own, **counters})


@dataclass
class Statistics:
    """Of a corpus: figures by file, and the first examples."""

    scorer: str
    threshold: float
    files: dict[str, Figures] = field(default_factory=dict)
    examples: list[Example] = field(default_factory=list)
    not_read: list[str] = field(default_factory=list)

    def add(self, name: str, figures: Figures, examples: list[Example]) -> None:
        """Take in a piece of a file."""
        self.files.setdefault(name, Figures()).add(figures)
        self.examples += examples[:EXAMPLES - len(self.examples)]

    @property
    def total(self) -> Figures:
        whole = Figures()
        for figures in self.files.values():
            whole.add(figures)
        return whole

    def as_dict(self) -> dict[str, object]:
        """For JSON: no text of the corpus is in it."""
        return {"scorer": self.scorer, "threshold": self.threshold, "total": self.total.as_dict(),
                "files": {name: figures.as_dict() for name, figures in self.files.items()},
                "not_read": self.not_read}


def shortened(text: str) -> str:
    """A text for an example."""
    return text if len(text) <= _LONGEST_EXAMPLE else text[:_LONGEST_EXAMPLE] + " …"
