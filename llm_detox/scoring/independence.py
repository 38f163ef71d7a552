"""The scorer that judges is none that trains or accepts, wherever the two are kept."""

from __future__ import annotations

from llm_detox.data.sources import fetch
from llm_detox.errors import UsageError
from llm_detox.recipe.scorers import ScoringSection


def check_kept_apart(scoring: ScoringSection) -> None:
    """What a recipe checks of scorers on this machine, with those fetched that lie elsewhere.

    Raises:
        UsageError: they have a part in common.
        DetoxError: one of them cannot be fetched.
    """
    if problem := scoring.in_common(lambda source: fetch(source, kind="model")):
        raise UsageError(problem, place="scoring",
                         remedy="use another kind for scoring.judging (bilstm, transformers, perspective, judge), or a "
                                "scorer from `llm-detox train-scorer --labelled none`")
