"""The detectors there are: a toxicity scorer, and a judge of answers. Their models load when they are opened."""

from __future__ import annotations

from typing import Any, cast, get_args

from llm_detox.detector.base import Detector
from llm_detox.errors import UsageError, optional_packages
from llm_detox.plugins import PREFIX
from llm_detox.recipe.scorers import ScorerKind, ScorerSection
from llm_detox.scoring.base import ToxicityScorer

_JUDGE = "judge"
REMEDY = ("ngram, bilstm, transformers=SOURCE or perspective for a scorer (attributes=FOLDER for one that "
          "train-scorer wrote), plugin:NAME for one of an installed package, judge=MODEL or judge=ADDRESS for a judge")


def judge_source(spec: str, place: str) -> str | None:
    """The model or address of `judge=SOURCE`; None where another kind is named.

    Raises:
        UsageError: a judge without a source.
    """
    kind, _, source = spec.partition("=")
    if kind != _JUDGE:
        return None
    if not source:
        raise UsageError("a judge needs a model", place=place, remedy=REMEDY)
    return source


def open_scorer(spec: str, place: str) -> ToxicityScorer:
    """The scorer of `KIND` or `KIND=SOURCE`.

    Raises:
        UsageError: there is no such scorer.
        DetoxError: its source is not available.
    """
    kind, _, source = spec.partition("=")
    if not kind.startswith(PREFIX) and (kind == "ensemble" or kind not in get_args(ScorerKind)):
        raise UsageError(f"there is none of the kind {kind!r}", place=place, remedy=REMEDY)
    from llm_detox.scoring.load import load_scorer

    return load_scorer(ScorerSection(kind=cast(Any, kind), source=source or None))


def open_detector(spec: str, threshold: float = 0.5, *, place: str = "DETECTOR") -> Detector:
    """The detector of `KIND` or `KIND=SOURCE`.

    Args:
        spec: a scorer's kind, as in a recipe's `scoring`, or `judge`, whose source is a model or the address of one.
        threshold: of a scorer, for requests that say nothing of it.

    Raises:
        UsageError: there is no such detector.
        DetoxError: its model, or a package that it needs, is not available.
    """
    if not 0 < threshold <= 1:
        raise UsageError("a threshold is between 0 and 1", place="--threshold", remedy="try 0.5")
    with optional_packages():
        if source := judge_source(spec, place):
            from llm_detox.detector.judging import JudgeDetector, open_judge

            return JudgeDetector(open_judge(source))
        from llm_detox.detector.scorer_detector import ScorerDetector

        return ScorerDetector(open_scorer(spec, place), threshold)
