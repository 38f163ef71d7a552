"""The guards there are: a toxicity scorer, and a judge of answers. Their models load when they are opened."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast, get_args

from llm_detox.client.client import TextGenerationClient, is_address, split_address
from llm_detox.client.credentials import credentials_for
from llm_detox.client.types import Message, Prompt
from llm_detox.errors import DetoxError, UsageError, optional_packages
from llm_detox.guard.filter import Guard, GuardVerdict
from llm_detox.guard.scorer_guard import ScorerGuard

if TYPE_CHECKING:
    from llm_detox.judge.judge import Constitution

_REMEDY = ("--guard ngram, bilstm, transformers=SOURCE or perspective for a scorer (attributes=FOLDER for "
           "one that train-scorer wrote), plugin:NAME for one of an installed package, judge=MODEL or judge=ADDRESS "
           "for a judge")


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
        return _open(spec, threshold)


def _open(spec: str, threshold: float) -> Guard:
    kind, _, source = spec.partition("=")
    if kind == "judge":
        if not source:
            raise UsageError("a judge needs a model", place="--guard", remedy=_REMEDY)
        return open_judge_guard(source)
    from llm_detox.plugins import PREFIX
    from llm_detox.recipe.scorers import ScorerKind, ScorerSection

    if not kind.startswith(PREFIX) and (kind == "ensemble" or kind not in get_args(ScorerKind)):
        raise UsageError(f"there is no guard {kind!r}", place="--guard", remedy=_REMEDY)
    from llm_detox.scoring.load import load_scorer

    return ScorerGuard(load_scorer(ScorerSection(kind=cast(Any, kind), source=source or None)), threshold)


class JudgeGuard:
    """Withholds what a judge of answers calls unsafe, or comes to no decision about.

    Args:
        name: of the judge's model.
        ask: gives the judge's text on a conversation; None where it gave none.
        constitution: the categories.
    """

    by_sentence = False  # a judgement is a generation of its own

    def __init__(self, name: str, ask: Callable[[list[dict[str, str]]], str | None],
                 constitution: Constitution) -> None:
        self.name = name
        self._ask, self._constitution = ask, constitution

    def judge(self, prompt: Prompt, shown: str, sentences: Sequence[str]) -> GuardVerdict:
        from llm_detox.judge.judge import judge_question, read_verdict

        turns: Sequence[Message] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        answer = {"role": "assistant", "content": shown + "".join(sentences)}
        try:
            said = self._ask(judge_question(self._constitution, [*map(dict, turns), answer]))
        except DetoxError as error:
            return GuardVerdict(True, f"the judge failed: {error.message}")
        verdict = read_verdict(said or "", self._constitution.categories)
        if verdict.decision is None:
            return GuardVerdict(True, f"the judge came to no decision: {verdict.reason}")
        return GuardVerdict(verdict.decision == "unsafe", " ".join(
            filter(None, ["judged", verdict.decision, verdict.category and f"({verdict.category})"])))


def open_judge_guard(source: str) -> JudgeGuard:
    """A judge by the packaged constitution.

    Args:
        source: a model that is loaded here, or the address of a served one; a judge behind an OpenAI-compatible
            address needs no torch here.

    Raises:
        DetoxError: the model is not available.
    """
    from llm_detox.judge.judge import load_constitution
    from llm_detox.recipe.judge import ChatModelSection

    settings = ChatModelSection(model=source)
    if is_address(source) and source.startswith("openai+"):
        url, model_id = split_address(source)
        client = TextGenerationClient(url, model_id, timeout=120, **credentials_for(url).options())

        def ask(messages: list[dict[str, str]]) -> str | None:
            return client.generate(messages, decoding_method="GREEDY", max_new_tokens=settings.max_new_tokens).text
    else:
        from llm_detox.generation.chat import open_chat

        chat, lock = open_chat(settings, source), threading.Lock()

        def ask(messages: list[dict[str, str]]) -> str | None:
            with lock:
                return next(iter(chat.answers([messages], seed=0, keys=["guard"]))).text
    return JudgeGuard(source, ask, load_constitution(None))
