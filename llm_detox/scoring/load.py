"""The scorer that a section of a recipe names, opened by its kind, its libraries only then; and the check that the one
that judges is none that trains or accepts, wherever the two are kept."""

from __future__ import annotations

from llm_detox.data.sources import fetch
from llm_detox.errors import UsageError
from llm_detox.plugins import PREFIX, load_plugin
from llm_detox.progress import say
from llm_detox.recipe.scorers import WEIGHTS_FILE, ScorerSection, ScoringSection
from llm_detox.scoring.base import EnsembleScorer, ToxicityScorer


def load_scorer(section: ScorerSection) -> ToxicityScorer:
    """The scorer of a section.

    Raises:
        DetoxError: its source cannot be found or read, or it lacks the attribute.
    """
    if section.kind.startswith(PREFIX):
        scorer: ToxicityScorer = load_plugin("llm_detox.scorers", section.kind)(section)
        return scorer
    if section.kind == "ngram":
        return _ngram(section)
    if section.kind == "attributes":
        from llm_detox.scoring.attributes import fetch_attribute_scorer

        return fetch_attribute_scorer(section.source, attribute=section.attribute)
    if section.kind == "bilstm":
        from llm_detox.scoring.bilstm import load_bilstm_scorer

        return load_bilstm_scorer(section.source, attribute=section.attribute)
    if section.kind == "perspective":
        from llm_detox.scoring.perspective import PerspectiveScorer

        return PerspectiveScorer(section.source, attribute=section.attribute,
                                 requests_per_second=section.requests_per_second)
    if section.kind == "judge":
        from llm_detox.scoring.judge_scorer import load_judge_scorer

        return load_judge_scorer(section.source, attribute=section.attribute)
    if section.kind == "ensemble":
        return EnsembleScorer([load_scorer(member) for member in section.members], attribute=section.attribute)
    from llm_detox.scoring.transformers_scorer import load_transformers_scorer

    return load_transformers_scorer(section.source, attribute=section.attribute)


def _ngram(section: ScorerSection) -> ToxicityScorer:
    """The labelled-text scorer; published recipes name a folder of `train-scorer` by this kind, too."""
    if section.source and fetch(section.source, kind="model").joinpath(WEIGHTS_FILE).exists():
        say(f"{section.source} is loaded as what it is, a scorer of several attributes: write `kind: attributes`")
        return load_scorer(section.model_copy(update={"kind": "attributes"}))
    from llm_detox.scoring.ngram import load_ngram_scorer

    return load_ngram_scorer(section.source, attribute=section.attribute)


def check_kept_apart(scoring: ScoringSection) -> None:
    """What a recipe checks of scorers on this machine, with those fetched that lie elsewhere.

    Raises:
        UsageError: they have a part in common.
        DetoxError: one of them cannot be fetched.
    """
    if shared := scoring.in_common(scoring.judging, lambda source: fetch(source, kind="model")):
        raise UsageError("the scorer that judges must differ from the one that trains or accepts; both are or contain: "
                         f"{shared}", place="scoring",
                         remedy="use another kind for scoring.judging (bilstm, transformers, perspective, judge), or a "
                                "scorer from `llm-detox train-scorer --labelled none`")
