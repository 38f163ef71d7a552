"""What SFT reads: comments (labelled, or with detoxify's audit trail) and clean passages, as token ids."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from llm_detox.data.records import read_jsonl
from llm_detox.errors import DetoxError


def training_texts(path: Path) -> tuple[list[str], dict[str, int]]:
    """The texts to train on and how many records were left out; a record that detoxify dropped is not trained on.

    Raises:
        DetoxError: the file cannot be read, or nothing is left to train on.
    """
    texts: list[str] = []
    counts = {"texts": 0, "dropped": 0, "empty": 0}
    for record in read_jsonl(path, required=["text"]):
        if record.get("action") == "dropped":
            counts["dropped"] += 1
        elif not isinstance(record["text"], str) or not record["text"].strip():
            counts["empty"] += 1
        else:
            texts.append(record["text"].strip())
    counts["texts"] = len(texts)
    if not texts:
        left_out = f" ({counts['dropped']} dropped, {counts['empty']} empty)" if sum(counts.values()) else ""
        raise DetoxError(f"no text to train on{left_out}", place=str(path),
                         remedy="give more records, or loosen detoxify's acceptance (detoxify.accept_*)")
    return texts, counts


def clean_texts(path: Path | None) -> list[str]:
    """The clean passages to mix in; none where no file is given."""
    if path is None:
        return []
    return [str(record["text"]).strip() for record in read_jsonl(path, required=["text"]) if record["text"].strip()]


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int) -> list[dict[str, Any]]:
    """Token ids of each text with an end-of-text token, cut to `max_length`; a cut text keeps no end.

    Returns:
        For each text `{"input_ids": ids, "length": len(ids)}`; texts of fewer than two tokens teach nothing and
        are left out.
    """
    if not texts:
        return []
    rows = []
    for ids in tokenizer(list(texts))["input_ids"]:
        if tokenizer.eos_token_id is not None and ids[-1:] != [tokenizer.eos_token_id]:
            ids = [*ids, tokenizer.eos_token_id]
        ids = ids[:max_length]
        if len(ids) > 1:
            rows.append({"input_ids": ids, "length": len(ids)})
    return rows
