"""The scorer that a recipe names, opened by its kind."""

from __future__ import annotations

from llm_detox.data.sources import fetch
from llm_detox.plugins import PREFIX, load_plugin
from llm_detox.recipe.scorers import ScorerSection
from llm_detox.scoring.base import EnsembleScorer, ToxicityScorer


def load_scorer(spec: ScorerSection) -> ToxicityScorer:
    """The scorer that a recipe names.

    Raises:
        DetoxError: its source cannot be found or read, or it lacks the attribute.
    """
    if spec.kind.startswith(PREFIX):
        scorer: ToxicityScorer = load_plugin("llm_detox.scorers", spec.kind)(spec)
        return scorer
    if spec.kind == "ngram":
        from llm_detox.recipe.scorers import WEIGHTS_FILE
        from llm_detox.scoring.attributes import load_attribute_scorer
        from llm_detox.scoring.ngram import load_ngram_scorer

        if spec.source and (folder := fetch(spec.source, kind="model")).joinpath(WEIGHTS_FILE).exists():
            return load_attribute_scorer(folder, attribute=spec.attribute)
        return load_ngram_scorer(spec.source, attribute=spec.attribute)
    if spec.kind == "bilstm":
        from llm_detox.scoring.bilstm import load_bilstm_scorer

        return load_bilstm_scorer(spec.source, attribute=spec.attribute)
    if spec.kind == "perspective":
        from llm_detox.scoring.perspective import PerspectiveScorer

        return PerspectiveScorer(spec.source, attribute=spec.attribute, requests_per_second=spec.requests_per_second)
    if spec.kind == "judge":
        from llm_detox.scoring.judge_scorer import load_judge_scorer

        return load_judge_scorer(spec.source, attribute=spec.attribute)
    if spec.kind == "ensemble":
        return EnsembleScorer([load_scorer(member) for member in spec.members], attribute=spec.attribute)
    from llm_detox.scoring.transformers_scorer import load_transformers_scorer

    return load_transformers_scorer(spec.source, attribute=spec.attribute)
