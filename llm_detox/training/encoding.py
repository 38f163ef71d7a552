"""What training reads: texts, prompts with completions and conversations, as token ids with the labels to learn.

A text is learned whole; of a prompt with a completion, and of a conversation, the model's part alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from transformers import PreTrainedTokenizerBase

from llm_detox.data.records import Record, read_jsonl, read_texts, text_of
from llm_detox.errors import DetoxError
from llm_detox.generation.chat import apply_template
from llm_detox.generation.models import base_folder, model_folder, open_config, positions
from llm_detox.progress import say

IGNORED = -100


class TokenRow(TypedDict):
    """A row of a training set: what the model reads, and what it learns to say (IGNORED where nothing is learned).

    For a causal model both lists have the same length; for a seq2seq model they are encoder text and target.
    """

    input_ids: list[int]
    labels: list[int]
    length: int  # tokens, by which rows share a batch


@dataclass
class TextCounts:
    """How the records of a training file fared."""

    texts: int = 0
    dropped: int = 0
    empty: int = 0


def training_texts(path: Path, *, may_be_none: bool = False) -> tuple[list[Record], TextCounts]:
    """The records to train on and how many were left out; a record that detoxify dropped is not trained on.

    Args:
        path: JSON lines. What a record holds decides how it is read: `messages` (a list of `role` and `content`), or
            `prompt` and `completion` (texts, or lists of messages), or `text`.
        may_be_none: whether it is no error that nothing is left.

    Returns:
        records with `messages`, with `prompt` and `completion` as texts, or with `text` alone.

    Raises:
        DetoxError: the file cannot be read, a record is none of these, or nothing is left to train on.
    """
    examples: list[Record] = []
    counts = TextCounts()
    for number, record in enumerate(read_jsonl(path), start=1):
        if record.get("action") == "dropped":
            counts.dropped += 1
        elif (example := _example(record, f"{path}, record {number}")) is None:
            counts.empty += 1
        else:
            examples.append(example)
    counts.texts = len(examples)
    if not examples and not may_be_none:
        left_out = f" ({counts.dropped} dropped, {counts.empty} empty)" if counts.dropped or counts.empty else ""
        raise DetoxError(f"no text to train on{left_out}", place=str(path),
                         remedy="give more records, or loosen detoxify's acceptance (detoxify.accept_*)")
    return examples, counts


def _example(record: Record, place: str) -> Record | None:
    """The part of a record that is trained on; None where it is empty."""
    prompt, completion = record.get("prompt"), record.get("completion")
    if isinstance(prompt, list) and isinstance(completion, list):
        record = {"messages": [*prompt, *completion]}
    if "messages" in record:
        return _conversation(record["messages"], place)
    if isinstance(prompt, str) and isinstance(completion, str):
        return {"prompt": prompt, "completion": completion} if completion.strip() else None
    if "text" not in record:
        raise DetoxError("the record has neither `text`, nor `prompt` and `completion`, nor `messages`", place=place,
                         remedy=f"fields here: {', '.join(map(str, record)) or 'none'}")
    text = "" if record["text"] is None else text_of(record, "text", place).strip()
    return {"text": text} if text else None


def _conversation(messages: Any, place: str) -> Record | None:
    if not isinstance(messages, list) or not all(
            isinstance(one, dict) and isinstance(one.get("content"), str) and isinstance(one.get("role"), str)
            for one in messages):
        raise DetoxError("`messages` is no list of messages", place=place,
                         remedy='a message is {"role": "user", "content": "..."}')
    answered = any(one["role"] == "assistant" and one["content"].strip() for one in messages)
    return {"messages": messages} if answered else None


def clean_texts(path: Path | None) -> list[str]:
    """The clean passages to mix in; none where no file is given."""
    if path is None:
        return []
    return [text.strip() for text in read_texts(path)]


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int,
             counts: Counter[str] | None = None) -> list[TokenRow]:
    """`encode` for plain texts."""
    return encode(tokenizer, [{"text": text} for text in texts], max_length, counts=counts)


def encode(tokenizer: PreTrainedTokenizerBase, examples: Sequence[Record], max_length: int, *,
           completion_only: bool = True, counts: Counter[str] | None = None) -> list[TokenRow]:
    """Token ids and labels of records of `training_texts`, cut to `max_length`.

    A text and a completion get an end-of-text token (a conversation has its template's), which a cut one loses.

    Args:
        completion_only: learn completions and answers alone; otherwise everything.
        counts: gets those `left_out`, and those `cut` of the others.

    Returns:
        A row for each example; those that teach nothing (fewer than two tokens, a completion that was cut off) are
        left out.

    Raises:
        DetoxError: a conversation for a tokenizer without a chat template, or with one that cannot be followed.
    """
    rows: list[TokenRow] = []
    counts = Counter() if counts is None else counts
    for example in examples:
        text, learned, chat = _rendered(tokenizer, example)
        encoded = tokenizer(text, add_special_tokens=not chat, return_offsets_mapping=True)
        ids: list[int] = list(encoded["input_ids"])  # type: ignore[call-overload]
        spans: list[tuple[int, int]] = list(encoded["offset_mapping"])  # type: ignore[call-overload]
        whole = learned is None or not completion_only
        # A token that begins in the prompt and ends in the completion belongs to the completion.
        labels = ids[:] if whole else [
            token if any(start < end <= stop and end > first for first, stop in learned or ()) else IGNORED
            for token, (start, end) in zip(ids, spans, strict=True)]
        if not chat and tokenizer.eos_token_id is not None and ids[-1:] != [tokenizer.eos_token_id]:
            ids.append(tokenizer.eos_token_id)
            labels.append(tokenizer.eos_token_id)
        too_long, ids, labels = len(ids) > max_length, ids[:max_length], labels[:max_length]
        if any(label != IGNORED for label in labels[1:]):
            rows.append({"input_ids": ids, "labels": labels, "length": len(ids)})
            counts["cut"] += too_long
        else:
            counts["left_out"] += 1
    return rows


def readable_length(max_length: int, source: str, setting: str) -> int:
    """The tokens of a text that the model can read: at most `max_length`, with a message where the recipe has more.

    Args:
        max_length: of the recipe.
        source: of the model; an adapter's is that of its base.
        setting: the key of `max_length`.
    """
    longest = positions(open_config(base_folder(model_folder(source))))
    if longest is None or max_length <= longest:
        return max_length
    say(f"{setting} is {max_length}, but the model reads {longest} tokens: longer texts are cut there")
    return longest


def report_truncation(counts: Counter[str], setting: str) -> None:
    """Say how many examples lost their end, or all that they teach, to the setting."""
    if counts["cut"] or counts["left_out"]:
        say(f"{setting} cuts {counts['cut']} examples off, and {counts['left_out']} are left out, for nothing to learn "
            "is left of them")
    if counts["prompts"]:
        say(f"{setting} cuts the beginning of {counts['prompts']} prompts off")


def _rendered(tokenizer: PreTrainedTokenizerBase, example: Record) -> tuple[str, list[tuple[int, int]] | None, bool]:
    """The text, the spans of characters to learn (None: all of it), and whether a chat template made it."""
    if "messages" in example:
        return *render_chat(tokenizer, example["messages"]), True
    if "completion" in example:
        text = example["prompt"] + example["completion"]
        return text, [(len(example["prompt"]), len(text))], False
    return example["text"], None, False


def render_chat(tokenizer: PreTrainedTokenizerBase, messages: list[Record]) -> tuple[str, list[tuple[int, int]]]:
    """A conversation in the tokenizer's chat template, and the spans of characters that the model says.

    Raises:
        DetoxError: there is no template, it refuses the conversation, or it changes what came before when a message
            is added.
    """
    whole, spans = apply_template(tokenizer, messages, asks=False), []
    for number, message in enumerate(messages):
        if message["role"] == "assistant":
            before = apply_template(tokenizer, messages[:number], asks=True)
            after = apply_template(tokenizer, messages[: number + 1], asks=False)
            if not (whole.startswith(after) and after.startswith(before)):
                raise DetoxError("the chat template changes earlier messages, so the answers cannot be found in it",
                                 place="model.source", remedy="set training.sft.completion_only: false")
            spans.append((len(before), len(after)))
    return whole, spans
