"""A judge at work: a chat model that reads conversations and says of the last answer whether it is safe."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from llm_detox.data.chats import Messages
from llm_detox.errors import UsageError
from llm_detox.folders import MANIFEST, digest_of, input_digest
from llm_detox.generation.chat import ChatModel, open_chat
from llm_detox.judge.constitution import Constitution, load_constitution
from llm_detox.judge.question import judge_question
from llm_detox.judge.verdicts import Verdict, read_verdict, undecided
from llm_detox.recipe import Recipe


class Judge:
    """Reads conversations that end with the answer to be judged."""

    def __init__(self, chat: ChatModel, constitution: Constitution, seed: int) -> None:
        self.chat, self.constitution, self.seed = chat, constitution, seed

    @property
    def name(self) -> str:
        """The source of the model, or its address."""
        return self.chat.name

    def read(self, conversations: Sequence[Messages], *, keys: Sequence[str],
             on_progress: Callable[[int], None] | None = None) -> Iterator[tuple[int, Verdict]]:
        """Yield (index of the conversation, its verdict) as they come."""
        questions = [judge_question(self.constitution, messages) for messages in conversations]
        for answer in self.chat.answers(questions, seed=self.seed, keys=keys, on_progress=on_progress):
            yield answer.index, (undecided(answer.reason or "no answer") if answer.text is None
                                 else read_verdict(answer.text, self.constitution.categories))


def open_judge(recipe: Recipe, model: str | None = None) -> Judge:
    """The judge that the recipe's `judge.reader` names, or another model with its other settings.

    Raises:
        UsageError: neither names a model.
        DetoxError: the model or the constitution cannot be had.
    """
    reader = recipe.judge.reader
    source = model or reader.model
    if source is None:
        raise UsageError("no model to judge with", place="judge.reader.model",
                         remedy="name the tuned judge there, or with --model")
    constitution = load_constitution(recipe.judge.constitution)
    return Judge(open_chat(reader.model_copy(update={"model": source}), source), constitution, recipe.seed)


def judge_fingerprint(recipe: Recipe, model: str | None = None) -> str:
    """Names a judge among others: its model, how it is asked, and the constitution."""
    source = model or recipe.judge.reader.model or ""
    content = input_digest(Path(source)) if source and (Path(source) / MANIFEST).exists() else source
    asked = recipe.judge.reader.model_dump(exclude={"batch_tokens", "model"})
    return digest_of([content, asked, load_constitution(recipe.judge.constitution).fingerprint])[:12]
