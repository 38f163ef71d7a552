"""Conversations: lists of messages, in which user and assistant take turns behind an optional system prompt."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from itertools import chain
from pathlib import Path

from llm_detox.data.records import Record, hash_fraction, read_jsonl, record_id, same_text_key
from llm_detox.data.sources import column, read_rows
from llm_detox.errors import DetoxError
from llm_detox.progress import say
from llm_detox.recipe.judge import ChatTable

Messages = list[dict[str, str]]
_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")  # the marks of the hh-rlhf transcripts
_ROLES = {"Human": "user", "Assistant": "assistant"}
_SHAPE = 'messages are [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}, ...]'


def as_messages(value: object) -> Messages:
    """The conversation that a column's value holds, cleaned of everything but roles and contents.

    Args:
        value: a list of messages, a transcript, or the text of a first message.

    Raises:
        ValueError: it is none of these, a message is empty, or user and assistant do not take turns.
    """
    if isinstance(value, str):
        value = _from_transcript(value)
    if not isinstance(value, list) or not value:
        raise ValueError("no messages")
    messages = [_message(part) for part in value]
    turns = messages[1:] if messages[0]["role"] == "system" else messages
    expected = ["user" if number % 2 == 0 else "assistant" for number in range(len(turns))]
    if not turns or [part["role"] for part in turns] != expected:
        raise ValueError("user and assistant must take turns, the user first")
    return messages


def _message(part: object) -> dict[str, str]:
    if not isinstance(part, dict) or not isinstance(part.get("role"), str) or not isinstance(part.get("content"), str):
        raise ValueError("a message has a role and a content")
    if part["role"] not in ("system", "user", "assistant"):
        raise ValueError(f"the role {part['role']!r} is not known")
    if not part["content"].strip():
        raise ValueError("a message is empty")
    return {"role": part["role"], "content": part["content"].strip()}


def _from_transcript(text: str) -> list[dict[str, str]]:
    parts = _TURN.split(text)
    if len(parts) == 1:
        return [{"role": "user", "content": text}]
    if parts[0].strip():
        raise ValueError("the transcript begins without a speaker")
    return [{"role": _ROLES[speaker], "content": said} for speaker, said in zip(parts[1::2], parts[2::2], strict=True)]


def asked(messages: Messages) -> Messages:
    """The conversation up to the user's last message, without the answer to it."""
    return messages[:-1] if messages[-1]["role"] == "assistant" else messages


def chat_id(messages: Messages) -> str:
    """The id of a conversation that brings none."""
    return record_id("\0".join(f"{part['role']}\0{part['content']}" for part in messages))


def choose_chats(tables: Sequence[ChatTable], kind: str, seed: int, *, taken: Collection[str] = ()) -> list[Record]:
    """The different conversations of some tables up to their last answer, in an order that depends on text and seed.

    Args:
        tables: where they are.
        kind: of them, named in messages.
        seed: of the order.
        taken: ids that are left out.

    Returns:
        `{"id", "kind", "messages"}`.

    Raises:
        DetoxError: there is none.
    """
    found: dict[str, Record] = {}
    unusable = 0
    for messages in chain.from_iterable(map(read_chat_table, tables)):
        question = asked(messages) if messages else None
        if not question:
            unusable += 1
        elif (identity := chat_id(question)) not in taken:
            found[identity] = {"id": identity, "kind": kind, "messages": question}
    if unusable:
        say(f"{unusable} {kind} conversations cannot be used")
    if not found:
        raise DetoxError(f"there are no {kind} conversations", place=f"the recipe's {kind}",
                         remedy="name sources of conversations, such as {source: ./chats.jsonl, column: messages}")
    return sorted(found.values(), key=lambda record: hash_fraction(record["id"], f"chats-{seed}"))


def first_request(messages: Messages) -> str:
    """The text of the first message, equal for texts that differ in case, punctuation and spacing alone."""
    return same_text_key(next(part["content"] for part in messages if part["role"] == "user"))


def read_chat_table(table: ChatTable) -> Iterator[Messages | None]:
    """Each conversation of a table; None for one that cannot be used, which public sets have some of.

    Raises:
        DetoxError: the source cannot be read, or has no such column.
    """
    for place, record in read_rows(table):
        try:
            yield as_messages(column(record, table.column, place))
        except ValueError:
            yield None


def read_chats(path: Path, *, answered: bool) -> list[Record]:
    """The conversations of a JSON lines file, each with an id of its own.

    Args:
        path: `{"id", "messages", ...}` lines; a missing id is made from the conversation.
        answered: whether the last message must be the assistant's; otherwise it must be the user's.

    Raises:
        DetoxError: a line holds no such conversation, an id stands twice, or the file is empty.
    """
    records: list[Record] = []
    seen: dict[str, int] = {}
    for number, record in enumerate(read_jsonl(path, required=("messages",)), start=1):
        place = f"{path}, record {number}"
        messages = checked(record["messages"], place, answered=answered)
        identity = str(record.get("id", chat_id(messages)))
        if identity in seen:
            raise DetoxError(f"the id {identity!r} is already used in record {seen[identity]}", place=place,
                             remedy="leave one of them out, or give each its own id")
        seen[identity] = number
        records.append({**record, "id": identity, "messages": messages})
    if not records:
        raise DetoxError("there is no conversation", place=str(path), remedy=_SHAPE)
    return records


def checked(value: object, place: str, *, answered: bool | None = None) -> Messages:
    """The conversation of a record.

    Args:
        value: of its field `messages`.
        place: of the record.
        answered: whether the last message must be the assistant's, or the user's; None takes both.

    Raises:
        DetoxError: it is none, or ends with the other one's message.
    """
    try:
        messages = as_messages(value)
    except ValueError as error:
        raise DetoxError(f"not a conversation: {error}", place=place, remedy=_SHAPE) from None
    if answered is not None and (messages[-1]["role"] == "assistant") != answered:
        raise DetoxError("the last message must be the " + ("assistant's" if answered else "user's"), place=place,
                         remedy="give conversations with the answer to be judged" if answered
                         else "leave the last answer out")
    return messages
