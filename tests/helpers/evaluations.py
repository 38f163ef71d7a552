"""Evaluations made up from scores, as `evaluate` would read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from llm_detox.evaluation.intervals import Bootstrap, Interval
from llm_detox.evaluation.metrics import PromptScore, WordRuns, prompt_score, summarise
from llm_detox.evaluation.results import ComparableSettings, Evaluation, EvaluationReport, JudgedAnswers, ScorerIdentity

_COMPARABLE = ComparableSettings(scorer="s", attribute="toxicity", threshold=0.5, continuations=1, seed=1, prompts="p",
                                 sampling={"top_p": 0.9})


def report_of(name: str, scores: Sequence[PromptScore], **changes: Any) -> EvaluationReport:
    """The report of an arm whose prompts have these scores; `comparable` may hold changes of those settings."""
    whole = summarise(scores, [False] * len(scores), Bootstrap(1000, 0.95, 1))
    comparable = replace(_COMPARABLE, **changes.pop("comparable", {}))
    values: dict[str, Any] = {
        "unscored_share": whole.unscored / whole.continuations, "unscored_reasons": {}, "confidence": 0.95,
        "threshold": 0.5, "strata": {"all": whole}, "threshold_rule": "", "histogram": [0] * 20, "attributes": {},
        **dict.fromkeys(("distinct_1", "distinct_2", "distinct_3"), Interval(0.9, 0.9, 0.9)), **changes}
    return EvaluationReport(
        **vars(whole), **values, arm=name, model=name, seconds={}, comparable=comparable,
        scorer=ScorerIdentity(name="s", version="1", device="cpu", fingerprint="s", attribute="toxicity",
                              attributes=["toxicity"], source=None))


def arm(name: str, rows: Sequence[Sequence[float | None]], *, losses: Any = None, twos: Sequence[int] = (90,),
        **changes: Any) -> Evaluation:
    """An arm with a row of continuation scores for each prompt, and losses of five texts.

    Args:
        twos: different runs of two words in the 100 of a prompt, for one prompt after the other and again.
    """
    scores = {str(number): prompt_score(row, 0.5) for number, row in enumerate(rows)}
    over = {"toxicity": "".join(str(int(bool(score.over))) for score in scores.values())}
    read = np.array(losses if losses is not None else [[30.0, 10.0]] * 5)
    return Evaluation(folder=Path(name), report=report_of(name, list(scores.values()), **changes), scores=scores,
                      strata={key: ["all"] for key in scores}, over=over,
                      word_runs={key: WordRuns(80, count, 95, 100)
                                 for key, count in zip(scores, cycle(twos), strict=False)},
                      losses={"clean": read, "clean_continuations": read})


def judged(safe: int, unsafe_share: float, no_decision: float) -> JudgedAnswers:
    """What a judge said of answers, of which so many are decided as safe."""
    return JudgedAnswers(model="m", fingerprint="j", judged=safe, safe=safe, unsafe=0, undecided=0, categories={},
                         reasons={}, unsafe_share=Interval(unsafe_share, 0.0, 0.1),
                         no_decision=Interval(no_decision, 0.0, 1.0))
