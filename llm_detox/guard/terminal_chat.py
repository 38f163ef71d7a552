"""A conversation in a terminal: answers come as they are made, and Ctrl-C ends the answer, not the program."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any

from llm_detox.client.client import TextGenerationClient
from llm_detox.client.types import NEXT_TURN, Conversation, GenerationError, Message, Prompt, plain_turns
from llm_detox.guard.filter import WITHHELD, GuardedClient
from llm_detox.progress import say, visible

_HELP = "/new begins anew, /exit or Ctrl-D ends, Ctrl-C ends an answer"


def chat(client: TextGenerationClient | GuardedClient, parameters: dict[str, Any], *, template: str | None = None,
         system: str | None = None, read: Callable[[str], str] = input, interactive: bool | None = None) -> None:
    """Talk until the input ends.

    Args:
        client: of the model; one with a guard shows sentences that have passed.
        parameters: of each answer.
        template: source of the tokenizer whose chat template makes the prompts. None leaves that to the server where
            it takes messages; else the turns are written as `User: ...` lines.
        system: the system prompt.
        read: gives the next line; EOFError ends.
        interactive: whether somebody sits there; None asks standard input. Without, an error ends the conversation.

    Raises:
        DetoxError: the template's tokenizer is not available.
        GenerationError: an answer failed, where nobody sits there.
    """
    plain_client = client.client if isinstance(client, GuardedClient) else client
    render, turns_are_lines = _renderer(plain_client.takes_messages, template)
    if turns_are_lines:
        parameters = {**parameters, "stop_sequences": [NEXT_TURN], "include_stop_sequence": False}
    talk = Conversation(render, system)
    interactive = sys.stdin.isatty() if interactive is None else interactive
    if interactive:
        import readline  # noqa: F401 - input() then edits lines and remembers them

        say(_HELP)
    while (line := _next_line(read, interactive)) is not None:
        if line == "/exit":
            return
        if line == "/new":
            talk.forget()
        elif line == "/help":
            say(_HELP)
        elif line:
            _exchange(client, parameters, talk, line, interactive)


def _next_line(read: Callable[[str], str], interactive: bool) -> str | None:
    while True:
        try:
            return read("you> " if interactive else "").strip()
        except EOFError:
            return None
        except KeyboardInterrupt:
            if not interactive:
                raise
            print()
            say(_HELP)


def _exchange(client: TextGenerationClient | GuardedClient, parameters: dict[str, Any], talk: Conversation, line: str,
              interactive: bool) -> None:
    shown: list[str] = []
    try:
        reason = _answer(client, parameters, talk.ask(line), shown)
    except KeyboardInterrupt:
        if not interactive:
            raise
        reason = ""
        say("\nended; the printed part is kept")
    except GenerationError as error:
        if not interactive:
            raise
        print()
        say(f"error: {error}" + ("\n  /new starts a new, shorter conversation" if len(talk) else ""))
        return
    talk.answered("" if reason == WITHHELD else "".join(shown))


def _answer(client: TextGenerationClient | GuardedClient, parameters: dict[str, Any], prompt: Prompt,
            shown: list[str]) -> str:
    """Print an answer as it comes, also into `shown`; returns why it ended."""
    reason = ""
    with closing(client.stream(prompt, **parameters)) as pieces:
        for piece in pieces:
            text = piece.text if shown else piece.text.lstrip()
            if text:
                shown.append(text)
                print(visible(text), end="", flush=True)
            reason = piece.finish_reason
            if reason == WITHHELD:
                say(f"{chr(10) if shown else ''}withheld: {piece.verdict.reason}")  # type: ignore[union-attr]
    print()
    return reason


def _renderer(takes_messages: bool, template: str | None) -> tuple[Callable[[Sequence[Message]], Prompt], bool]:
    """How prompts are made, and whether their turns are plain lines."""
    if template is None:
        return (list, False) if takes_messages else (plain_turns, True)
    from llm_detox.generation.chat import render_chat  # transformers loads only here
    from llm_detox.generation.models import load_tokenizer

    tokenizer = load_tokenizer(template)
    return (lambda messages: render_chat(tokenizer, [dict(one) for one in messages])), tokenizer.chat_template is None
