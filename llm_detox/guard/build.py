"""The guards there are: a toxicity scorer, and a judge of answers. Their models load when they are opened."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from llm_detox.client.types import Message, Prompt
from llm_detox.detector.build import judge_source, open_scorer
from llm_detox.errors import DetoxError, optional_packages
from llm_detox.guard.filter import Guard, GuardVerdict
from llm_detox.guard.scorer_guard import ScorerGuard

if TYPE_CHECKING:
    from llm_detox.detector.judging import OpenJudge


def open_guard(spec: str, threshold: float = 0.5) -> Guard:
    """The guard of `KIND` or `KIND=SOURCE`.

    Args:
        spec: a scorer's kind, as in a recipe's `scoring`, or `judge`, whose source is a model or the address of one.
        threshold: of a scorer: answers that score this or more are withheld.

    Raises:
        UsageError: there is no such guard.
        DetoxError: its model, or a package that it needs, is not available.
    """
    with optional_packages():
        if source := judge_source(spec, "--guard"):
            from llm_detox.detector.judging import open_judge

            return JudgeGuard(open_judge(source))
        return ScorerGuard(open_scorer(spec, "--guard"), threshold)


class JudgeGuard:
    """Withholds what a judge of answers calls unsafe, or comes to no decision about."""

    by_sentence = False  # a judgement is a generation of its own

    def __init__(self, judge: OpenJudge) -> None:
        self.name = judge.name
        self._judge = judge

    def judge(self, prompt: Prompt, shown: str, sentences: Sequence[str]) -> GuardVerdict:
        turns: Sequence[Message] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        answer = {"role": "assistant", "content": shown + "".join(sentences)}
        try:
            verdict = self._judge.verdict([*map(dict, turns), answer])
        except DetoxError as error:
            return GuardVerdict(True, f"the judge failed: {error.message}")
        if verdict.decision is None:
            return GuardVerdict(True, f"the judge came to no decision: {verdict.reason}")
        return GuardVerdict(verdict.decision == "unsafe", " ".join(
            filter(None, ["judged", verdict.decision, verdict.category and f"({verdict.category})"])))
