"""Preference pairs that were made elsewhere: any hub or local table of `prompt`, `chosen`, `rejected`."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from transformers import PreTrainedTokenizerBase

from llm_detox.data.records import Record
from llm_detox.data.sources import fetch
from llm_detox.data.tables import column, read_table
from llm_detox.errors import DetoxError
from llm_detox.generation.chat import apply_template, without_first
from llm_detox.recipe_training import PairTable
from llm_detox.training.pairs import Pair
from llm_detox.training.texts import render_chat

GIVEN = "given"
_LAST_ANSWER = "\n\nAssistant:"  # how Anthropic/hh-rlhf writes a conversation


def given_pairs(tables: list[PairTable], tokenizer: PreTrainedTokenizerBase) -> list[Pair]:
    """The pairs of the tables, in their order; answers that are the same, and empty ones, make no pair.

    Chosen and rejected are texts, or conversations (lists of messages), which the tokenizer's chat template writes.

    Raises:
        DetoxError: a table cannot be read, a column is missing or holds neither, or a table holds no pair.
    """
    pairs: list[Pair] = []
    for table in tables:
        found = list(islice(_pairs(table, tokenizer), table.count))
        if not found:
            raise DetoxError("the preference set holds no pair", place=table.source,
                             remedy="name its columns in training.dpo.pairs")
        pairs += found
    return pairs


def _pairs(table: PairTable, tokenizer: PreTrainedTokenizerBase) -> Iterator[Pair]:
    for number, record in enumerate(read_table(fetch(table.source, kind="dataset")), start=1):
        place = f"{table.source}, record {number}"
        chosen, rejected = (_as_text(column(record, name, place), tokenizer, place)
                            for name in (table.chosen_column, table.rejected_column))
        if table.prompt_column is None:
            prompt = _shared_beginning(chosen, rejected)
            chosen, rejected = chosen[len(prompt):], rejected[len(prompt):]
        else:
            given = column(record, table.prompt_column, place)
            prompt = _as_text(given, tokenizer, place, asks=True)
            chosen, rejected = (_answer(one, prompt) for one in (chosen, rejected))
        if prompt and chosen.strip() and rejected.strip() and chosen != rejected:
            yield Pair(prompt, chosen, rejected, 0.0, GIVEN, ends=True)


def _as_text(value: Any, tokenizer: PreTrainedTokenizerBase, place: str, *, asks: bool = False) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(isinstance(one, dict) and "content" in one for one in value):
        return without_first(tokenizer, apply_template(tokenizer, value, asks=True)) if asks \
            else _conversation(tokenizer, value)
    raise DetoxError(f"the column holds neither text nor a conversation but {value!r:.40}", place=place,
                     remedy="name the right columns in training.dpo.pairs")


def _conversation(tokenizer: PreTrainedTokenizerBase, messages: list[Record]) -> str:
    if len(messages) == 1 and messages[0].get("role") == "assistant":  # an answer alone; its prompt stands apart
        return str(messages[0]["content"])
    return without_first(tokenizer, render_chat(tokenizer, messages)[0])


def _answer(text: str, prompt: str) -> str:
    """What comes behind the prompt, whether the column repeats it or not, with a space before it if none is there."""
    if text.startswith(prompt):
        return text[len(prompt):]
    return text if prompt[-1:].isspace() or text[:1].isspace() else f" {text}"


def _shared_beginning(one: str, other: str) -> str:
    """What both conversations begin with, up to where the last answer begins; else up to the last whole word."""
    shared = 0
    while shared < min(len(one), len(other)) and one[shared] == other[shared]:
        shared += 1
    beginning = one[:shared]
    if (last := beginning.rfind(_LAST_ANSWER)) >= 0:
        return beginning[: last + len(_LAST_ANSWER)]
    return beginning[: beginning.rfind(" ")] if " " in beginning else ""
