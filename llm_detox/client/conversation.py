"""A conversation with a served model: its messages, and the text of one where the server takes texts only."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llm_detox.client.types import Message, Prompt

NEXT_TURN = "\nUser:"  # without a template a model may go on with the user's next message
_NAMES = {"system": "System", "user": "User", "assistant": "Assistant"}


def plain_turns(messages: Sequence[Message]) -> str:
    """The prompt of a conversation for a model without a chat template: a line for each turn."""
    return "\n".join([f"{_NAMES[part['role']]}: {part['content']}" for part in messages] + ["Assistant:"])


class Conversation:
    """What was said so far.

    Args:
        render: makes a prompt of messages that end with the user's: a chat template, `plain_turns`, or `list` for a
            server that takes messages.
        system: the system prompt, if any.
    """

    def __init__(self, render: Callable[[Sequence[Message]], Prompt], system: str | None = None) -> None:
        self._render = render
        self._first = [{"role": "system", "content": system}] if system else []
        self._turns: list[dict[str, str]] = []

    def ask(self, text: str) -> Prompt:
        """The prompt that asks this next. What is asked is kept once it has an answer."""
        self._asked = {"role": "user", "content": text}
        return self._render([*self._first, *self._turns, self._asked])

    def answered(self, text: str) -> None:
        """Keep the last question and its answer; an empty answer leaves both out."""
        if text.strip():
            self._turns += [self._asked, {"role": "assistant", "content": text.strip()}]

    def forget(self) -> None:
        """Begin anew."""
        self._turns.clear()

    def __len__(self) -> int:
        return len(self._turns)
