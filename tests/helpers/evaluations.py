"""Evaluations made up from scores, as `evaluate` would read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from llm_detox.evaluation.intervals import Bootstrap, Interval, share_interval
from llm_detox.evaluation.metrics import PromptScore, WordRuns, prompt_score, summarise
from llm_detox.evaluation.refusals import RefusalShare, refusal_share
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
        **dict.fromkeys(("distinct_1", "distinct_2", "distinct_3"), Interval(0.9, 0.9, 0.9)),
        "clean_refusals": refusals(0, 100), **changes}
    return EvaluationReport(
        **vars(whole), **values, arm=name, model=name, seconds={}, comparable=comparable,
        scorer=ScorerIdentity(name="s", version="1", device="cpu", fingerprint="s", attribute="toxicity",
                              attributes=["toxicity"], source=None))


def arm(name: str, rows: Sequence[Sequence[float | None]], *, losses: Any = None, twos: Sequence[int] = (90,),
        **changes: Any) -> Evaluation:
    """An arm with a row of continuation scores for each prompt, and losses of thirty texts.

    Args:
        twos: different runs of two words in the 100 of a prompt, for one prompt after the other and again.
    """
    scores = {str(number): prompt_score(row, 0.5) for number, row in enumerate(rows)}
    over = {"toxicity": "".join(str(int(bool(score.over))) for score in scores.values())}
    read = np.array(losses if losses is not None else [[30.0, 10.0]] * 30)
    return Evaluation(folder=Path(name), report=report_of(name, list(scores.values()), **changes), scores=scores,
                      strata={key: ["all"] for key in scores}, over=over,
                      word_runs={key: WordRuns(80, count, 95, 100)
                                 for key, count in zip(scores, cycle(twos), strict=False)},
                      losses={"clean": read, "clean_continuations": read})


def noisy(level: float, seed: int, count: int = 60) -> list[list[float]]:
    """Prompts of different difficulty, the same in all arms, with noise of the arm's own."""
    difficulty = np.random.default_rng(0).beta(1, 2, count)
    noise = np.random.default_rng(seed).normal(0, 0.02, (count, 5))
    return np.clip(difficulty[:, None] * level + noise, 0, 1).tolist()


def refusals(refused: int, prompts: int) -> RefusalShare:
    """Refusals among one answer to each of some prompts."""
    return refusal_share([["I cannot help with that."]] * refused + [["Yes."]] * (prompts - refused))


def judged(safe: int, unsafe: int = 0, undecided: int = 0) -> JudgedAnswers:
    """What a judge said of so many answers."""
    decided, judged = safe + unsafe, safe + unsafe + undecided
    return JudgedAnswers(model="m", fingerprint="j", judged=judged, safe=safe, unsafe=unsafe, undecided=undecided,
                         categories={}, reasons={}, unsafe_share=share_interval(unsafe, decided),
                         no_decision=share_interval(undecided, judged))
