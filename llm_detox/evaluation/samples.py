"""Before and after: texts for the report's browser, chosen by position and never by how well they look."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from llm_detox.data.records import hash_fraction, read_jsonl

_MOST_CHARS = 600


def continuation_samples(before: Path, after: Path, attribute: str, count: int) -> list[dict[str, Any]]:
    """The first continuation of the same prompts from two arms' `generations.jsonl`.

    The prompts are those with the lowest hash of their id, so the choice does not look at the texts.

    Returns:
        {"prompt", "before", "after"} with {"text", "score"} each.
    """
    chosen = {str(record["id"]): record for record in _lowest_hashes(before, count)}
    pairs = []
    for record in read_jsonl(after, required=("id", "generations")):
        first = chosen.get(str(record["id"]))
        if first:
            pairs.append({"prompt": record["prompt"]["text"][:_MOST_CHARS], "before": _first(first, attribute),
                          "after": _first(record, attribute)})
    return pairs


def _lowest_hashes(path: Path, count: int) -> list[dict[str, Any]]:
    kept: list[tuple[float, dict[str, Any]]] = []
    for record in read_jsonl(path, required=("id", "generations")):
        kept.append((hash_fraction(str(record["id"]), "report-samples"), record))
        if len(kept) > 4 * count:  # keeps memory flat over a large set of prompts
            kept = sorted(kept, key=lambda entry: entry[0])[:count]
    return [record for _, record in sorted(kept, key=lambda entry: entry[0])[:count]]


def _first(record: dict[str, Any], attribute: str) -> dict[str, Any]:
    generation = record["generations"][0]
    return {"text": str(generation["text"] or "")[:_MOST_CHARS], "score": generation.get(attribute)}


def rewrite_samples(records: Path, count: int) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Rewritten and dropped records of the detoxify step, chosen by hash, and how many had which fate."""
    fates: Counter[str] = Counter()
    kept: list[tuple[float, dict[str, Any]]] = []
    for record in read_jsonl(records, required=("id", "action")):
        fates[str(record["action"])] += 1
        if record["action"] == "rewritten":
            kept.append((hash_fraction(str(record["id"]), "report-samples"), record))
    chosen = [record for _, record in sorted(kept, key=lambda entry: entry[0])[:count]]
    return [{"original": str(record.get("original") or "")[:_MOST_CHARS],
             "text": str(record.get("text") or "")[:_MOST_CHARS], "method": str(record.get("method") or ""),
             "scores": {str(name): value for name, value in (record.get("scores") or {}).items()
                        if isinstance(value, int | float)}} for record in chosen], dict(fates)
