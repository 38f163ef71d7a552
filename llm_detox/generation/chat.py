"""Answers of a chat model: one on this machine through its template, or a served one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from llm_detox.client.types import NEXT_TURN, plain_turns
from llm_detox.data.chats import Messages
from llm_detox.errors import DetoxError
from llm_detox.generation.generators import EndpointGenerator, Generator, LocalGenerator, open_generator
from llm_detox.generation.models import load_tokenizer, positions
from llm_detox.recipe.evaluation import SamplingSection
from llm_detox.recipe.judge import ChatModelSection

_MOST_LIKELY = 1e-6  # a nucleus that holds one token: the most likely one
NO_ANSWER = "the server gave no answer"  # another try may give one


@dataclass(frozen=True)
class Answer:
    """The answer to the conversation of that index; without one (`text` is None), the reason."""

    index: int
    text: str | None
    reason: str | None = None


class ChatModel(Protocol):
    """Answers conversations that end with a user's message."""

    name: str

    def answers(self, conversations: Sequence[Messages], *, seed: int, keys: Sequence[str],
                on_progress: Callable[[int], None] | None = None) -> Iterator[Answer]:
        """Yield one answer for each conversation, as they come."""


def open_chat(section: ChatModelSection, default: str) -> ChatModel:
    """The chat model of a recipe's section; `default` is the source where it names none.

    Raises:
        DetoxError: the model or the tokenizer of its template cannot be had.
    """
    return _Chat(section, section.model or default)


class _Chat:
    def __init__(self, section: ChatModelSection, source: str) -> None:
        self.name = source
        self._system = section.system
        self._sampling = SamplingSection(
            top_p=section.top_p if section.temperature else _MOST_LIKELY, temperature=section.temperature or 1.0,
            max_new_tokens=section.max_new_tokens, batch_tokens=section.batch_tokens)
        self._sends_messages = source.startswith("openai+")  # such a server has the template itself
        self._generator: Generator = (
            EndpointGenerator(source, chat=True) if self._sends_messages else open_generator(source))
        self._tokenizer: PreTrainedTokenizerBase | None = None
        if section.template:
            self._tokenizer = load_tokenizer(section.template)
        elif isinstance(self._generator, LocalGenerator):
            self._tokenizer = self._generator.tokenizer

    def answers(self, conversations: Sequence[Messages], *, seed: int, keys: Sequence[str],
                on_progress: Callable[[int], None] | None = None) -> Iterator[Answer]:
        prompts = [self._prompt(messages) for messages in conversations]
        fitting = [index for index, prompt in enumerate(prompts) if self._fits(prompt)]
        for index in sorted(set(range(len(prompts))) - set(fitting)):
            if on_progress:
                on_progress(1)
            yield Answer(index, None, "the conversation is too long for the model")
        for number, texts in self._generator.continuations(
                [prompts[index] for index in fitting], k=1, sampling=self._sampling, seed=seed,
                keys=[keys[index] for index in fitting], on_progress=on_progress):
            text = texts[0]
            if text is None:
                yield Answer(fitting[number], None, NO_ANSWER)
            else:
                yield Answer(fitting[number], self._own_turn(text).strip())

    def _prompt(self, messages: Messages) -> str:
        if self._system and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self._system}, *messages]
        return json.dumps(messages) if self._sends_messages else render_chat(self._tokenizer, messages)

    def _fits(self, prompt: str) -> bool:
        """A prompt that is cut in front would lose what it asks."""
        if not isinstance(self._generator, LocalGenerator):
            return True
        limit = positions(self._generator.model.config)
        tokens: Any = self._generator.tokenizer(prompt)["input_ids"]
        return limit is None or len(tokens) + self._sampling.max_new_tokens <= limit

    def _own_turn(self, text: str) -> str:
        """Without a template a model may go on with the user's next message."""
        plain = not self._sends_messages and (self._tokenizer is None or self._tokenizer.chat_template is None)
        return text.partition(NEXT_TURN)[0] if plain else text


def render_chat(tokenizer: PreTrainedTokenizerBase | None, messages: Messages) -> str:
    """The prompt of a conversation, up to where the answer begins, without the token that the tokenizer puts first.

    Args:
        tokenizer: with a chat template; without one (or None) the turns are written as `User: ...` lines.
        messages: a template that knows no system prompt gets it in front of the first message.

    Raises:
        DetoxError: the template refuses the conversation.
    """
    if tokenizer is None or tokenizer.chat_template is None:
        return plain_turns(messages)
    return without_first(tokenizer, apply_template(tokenizer, messages, asks=True))


def apply_template(tokenizer: PreTrainedTokenizerBase, messages: Messages, *, asks: bool) -> str:
    """A conversation in the tokenizer's chat template; one that knows no system prompt gets it in the first message.

    Args:
        tokenizer: of the model.
        messages: the conversation, or its beginning.
        asks: whether the beginning of an answer is put behind.

    Raises:
        DetoxError: there is no template, or it refuses the conversation.
    """
    if not tokenizer.chat_template:
        raise DetoxError("the tokenizer has no chat template, and the text is a conversation", place="model.source",
                         remedy="take a chat model, or give prompts and completions as texts (data.texts.chat: false)")

    def applied(given: Messages) -> str:
        return str(tokenizer.apply_chat_template(given, tokenize=False, add_generation_prompt=asks))

    try:
        return applied(messages)
    except TemplateError:
        try:
            return applied(_without_system(messages))
        except TemplateError as error:
            raise DetoxError(f"the chat template refuses a conversation: {error}",
                             place=str(tokenizer.name_or_path), remedy="name another template") from None


def without_first(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """A template's text without the token in front that the tokenizer puts there itself."""
    first, ids = tokenizer.bos_token, tokenizer("x")["input_ids"]
    if first and ids[:1] == [tokenizer.bos_token_id]:  # type: ignore[index]
        return text.removeprefix(str(first))
    return text


def _without_system(messages: Messages) -> Messages:
    if len(messages) < 2 or messages[0]["role"] != "system":
        return messages
    first = {"role": "user", "content": f"{messages[0]['content']}\n\n{messages[1]['content']}"}
    return [first, *messages[2:]]
