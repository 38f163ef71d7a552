"""A judge of answers, asked one conversation at a time; the guard and the detector of its kind share it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from llm_detox.client.client import TextGenerationClient, is_address, split_address
from llm_detox.client.credentials import credentials_for
from llm_detox.data.chats import Messages
from llm_detox.detector.base import UNSCORED, Detection
from llm_detox.detector.pieces import Place, trimmed
from llm_detox.judge.judge import Constitution, Verdict, judge_question, load_constitution, read_verdict
from llm_detox.recipe.judge import ChatModelSection

Ask = Callable[[Messages], str | None]
_TYPE = "safety"
_UNSAFE = "unsafe"  # where the judge names no category


@dataclass(frozen=True)
class OpenJudge:
    """A judge that answers.

    Attributes:
        name: of its model.
        ask: gives the judge's text on a question; None where it gave none.
        constitution: the categories.
    """

    name: str
    ask: Ask
    constitution: Constitution

    def verdict(self, conversation: Messages) -> Verdict:
        """On the last answer of a conversation.

        Raises:
            DetoxError: the judge failed.
        """
        return read_verdict(self.ask(judge_question(self.constitution, conversation)) or "",
                            self.constitution.categories)


def open_judge(source: str) -> OpenJudge:
    """A judge by the packaged constitution.

    Args:
        source: a model that is loaded here, or the address of a served one; a judge behind an OpenAI-compatible
            address needs no torch here.

    Raises:
        DetoxError: the model is not available.
    """
    settings = ChatModelSection(model=source)
    if is_address(source) and source.startswith("openai+"):
        url, model_id = split_address(source)
        client = TextGenerationClient(url, model_id, timeout=120, **credentials_for(url).options())

        def ask(messages: Messages) -> str | None:
            return client.generate(messages, decoding_method="GREEDY", max_new_tokens=settings.max_new_tokens).text
    else:
        from llm_detox.generation.chat import open_chat

        chat, lock = open_chat(settings, source), threading.Lock()

        def ask(messages: Messages) -> str | None:
            with lock:
                return next(iter(chat.answers([messages], seed=0, keys=["guard"]))).text
    return OpenJudge(source, ask, load_constitution(None))


class JudgeDetector:
    """Finds contents that a judge calls unsafe, as answers to a question that it does not see.

    A judgement is yes or no: the score of an unsafe content is 1, and its span is all of it.
    """

    def __init__(self, judge: OpenJudge) -> None:
        self.name = judge.name
        self.detections = (*judge.constitution.categories, _UNSAFE)
        self.default: Mapping[str, float] = dict.fromkeys(self.detections, 1.0)
        self._judge = judge

    def detect(self, contents: Sequence[str], thresholds: Mapping[str, float]) -> list[list[Detection]]:
        """See `Detector.detect`; without a decision a content is a detection, too."""
        return [self._detect(text, thresholds) for text in contents]

    def _detect(self, text: str, thresholds: Mapping[str, float]) -> list[Detection]:
        place = trimmed(text, Place(0, len(text)))
        if place is None:
            return []
        verdict = self._judge.verdict([{"role": "user", "content": ""}, {"role": "assistant", "content": text}])
        if verdict.decision == "safe":
            return []
        name = UNSCORED if verdict.decision is None else verdict.category or _UNSAFE
        wanted = name == UNSCORED or name in thresholds
        return [Detection(place.start, place.end, text[place.start:place.end], name, _TYPE, 1.0)] if wanted else []
