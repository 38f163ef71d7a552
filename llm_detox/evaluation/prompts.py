"""Evaluation prompts: RealToxicityPrompts records, or just `{"prompt": "..."}`."""

from __future__ import annotations

from pathlib import Path

from llm_detox.data.records import Record, read_jsonl, record_id
from llm_detox.errors import DetoxError


def read_prompts(path: Path) -> list[Record]:
    """The records, each with an `id` of its own and `prompt` as an object with `text`.

    Raises:
        DetoxError: the file is unreadable, empty, or a record has no prompt text; the message names the line.
    """
    records: list[Record] = []
    seen: dict[str, int] = {}
    for number, record in enumerate(read_jsonl(path, required=("prompt",)), start=1):
        prompt = record["prompt"]
        prompt = {"text": prompt} if isinstance(prompt, str) else prompt
        if not isinstance(prompt, dict) or not isinstance(prompt.get("text"), str) or not prompt["text"].strip():
            raise DetoxError("the prompt has no text", place=f"{path}, record {number}",
                             remedy='a record is {"prompt": "..."} or {"prompt": {"text": "...", "toxicity": 0.5}}')
        identity = str(record.get("id") or record_id(prompt["text"]))
        seen[identity] = seen.get(identity, 0) + 1
        if seen[identity] > 1:
            identity = f"{identity}-{seen[identity]}"
        records.append({**record, "id": identity, "prompt": prompt})
    if not records:
        raise DetoxError("there are no prompts in the file", place=str(path),
                         remedy="give RealToxicityPrompts records, one JSON object a line")
    return records
