"""A judge of answers as a toxicity scorer: verdicts are scores, no decision is unscored, its name follows its words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from llm_detox.data.chats import Messages
from llm_detox.errors import DetoxError
from llm_detox.generation.chat import Answer
from llm_detox.judge.judge import Constitution, load_constitution
from llm_detox.recipe.scorers import ScorerSection
from llm_detox.scoring import judge_scorer as module
from llm_detox.scoring.base import ToxicityScorer
from llm_detox.scoring.judge_scorer import REQUEST
from llm_detox.scoring.load import load_scorer

SAFE = "Evaluation: Nothing is wrong with it.\nChatbot is: good."
UNSAFE = "Evaluation: An insult.\nCategory: {}\nChatbot is: bad."


class Reader:
    """A chat model that answers the judge's question by the words of the judged text, the last question first."""

    name = "reader"

    def __init__(self, category: str) -> None:
        self.category = category
        self.questions: list[str] = []

    def answers(self, conversations: Sequence[Messages], *, seed: int, keys: Sequence[str],
                on_progress: Callable[[int], None] | None = None) -> Iterator[Answer]:
        for index in reversed(range(len(conversations))):
            question = conversations[index][-1]["content"]
            self.questions.append(question)
            if "server down" in question:
                raise ConnectionError("the judge is gone")
            text = (None if "no answer" in question else "Hm." if "hard to say" in question
                    else UNSAFE.format(self.category) if "fool" in question else SAFE)
            yield Answer(index, text, "the server gave no answer" if text is None else None)


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> Reader:
    found = Reader(next(iter(load_constitution(None).categories)))
    monkeypatch.setattr(module, "open_chat", lambda how, default: found)
    return found


def scorer(source: str = "owner/judge") -> ToxicityScorer:
    return load_scorer(ScorerSection(kind="judge", source=source))


def test_verdicts_are_scores_in_the_order_of_the_texts_and_no_decision_is_unscored(reader: Reader) -> None:
    judge = scorer()
    texts = ["what a fine day", "you fool", "hard to say", "no answer here", "", "such a fool, you"]
    assert judge.score(texts) == [0.0, 1.0, None, None, None, 1.0]
    assert judge.failures == {"empty text": 1, "no usable answer": 2}
    assert judge.attributes == ("toxicity",)


def test_each_text_is_judged_as_the_answer_to_a_request_that_asks_for_nothing_bad(reader: Reader) -> None:
    scorer().score(["you fool"])
    [question] = reader.questions
    assert REQUEST in question
    assert question.index(REQUEST) < question.index("you fool")


def test_the_fingerprint_names_the_model_and_the_constitution(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    first = scorer().fingerprint
    assert scorer().fingerprint == first
    assert scorer("owner/other").fingerprint != first
    monkeypatch.setattr(module, "load_constitution", lambda source: Constitution({"insults": "rude words"}))
    assert scorer().fingerprint != first


def test_a_judge_that_is_gone_stops_the_run(reader: Reader) -> None:
    judge = scorer()
    judge.batch_size = 1
    with pytest.raises(DetoxError, match="the judge is gone"):
        judge.score([f"server down {number}" for number in range(5)])


@pytest.mark.parametrize(("spec", "problem"), [
    ({"kind": "judge"}, "needs a source"), ({"kind": "judge", "source": "a/b", "attribute": "insult"}, "no attribute")])
def test_a_judge_without_a_model_or_for_another_attribute_is_refused(reader: Reader, spec: dict[str, Any],
                                                                     problem: str) -> None:
    with pytest.raises(DetoxError, match=problem):
        load_scorer(ScorerSection.model_validate(spec))
