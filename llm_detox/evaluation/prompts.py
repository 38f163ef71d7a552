"""Evaluation prompts: RealToxicityPrompts records, or just `{"prompt": "..."}`."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from llm_detox.data.records import Record, numbered_id, read_jsonl, record_id
from llm_detox.errors import DetoxError, UsageError
from llm_detox.runs.folders import WHOLE, Shard, shard_range


class Prompts:
    """The prompts of a file, or a shard of them.

    They are read anew each time they are gone through, so memory does not grow with their number.

    Args:
        path: RealToxicityPrompts records or `{"prompt": "..."}`, JSON lines.
        shard: (number from 0, of how many): only this part of the prompts.

    Raises:
        DetoxError: the file is unreadable, empty, or a record has no prompt text; the message names the line.
    """

    def __init__(self, path: Path, shard: Shard | None = None) -> None:
        self.path, self.shard = path, shard or WHOLE
        whole = sum(1 for _ in _read(path))
        if not whole:
            raise DetoxError("there are no prompts in the file", place=str(path),
                             remedy="give RealToxicityPrompts records, one JSON object a line")
        if self.shard[1] > whole:
            raise UsageError(f"{self.shard[1]} shards of {whole} prompts", place="shard",
                             remedy="take fewer shards: none may be empty")
        self._range = shard_range(whole, self.shard)

    def __len__(self) -> int:
        return len(self._range)

    def __iter__(self) -> Iterator[Record]:
        """The records, each with an `id` of its own and `prompt` as an object with `text`."""
        yield from islice(_read(self.path), self._range.start, self._range.stop)


def _read(path: Path) -> Iterator[Record]:
    seen: dict[str, int] = {}
    for number, record in enumerate(read_jsonl(path, required=("prompt",)), start=1):
        prompt = record["prompt"]
        prompt = {"text": prompt} if isinstance(prompt, str) else prompt
        if not isinstance(prompt, dict) or not isinstance(prompt.get("text"), str) or not prompt["text"].strip():
            raise DetoxError("the prompt has no text", place=f"{path}, record {number}",
                             remedy='a record is {"prompt": "..."} or {"prompt": {"text": "...", "toxicity": 0.5}}')
        yield {**record, "id": numbered_id(str(record.get("id") or record_id(prompt["text"])), seen), "prompt": prompt}
