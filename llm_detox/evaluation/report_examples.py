"""Before and after: texts for the report's browser, chosen by position and never by how well they look."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm_detox.data.records import hash_fraction, read_jsonl

_MOST_CHARS = 600


def continuation_samples(files: Mapping[str, Path], attribute: str, count: int) -> list[dict[str, Any]]:
    """The first continuation of the same prompts from each arm's `generations.jsonl`.

    The prompts are those with the lowest hash of their id, so the choice does not look at the texts.

    Args:
        files: arm -> its file; the first arm's prompts are chosen from.

    Returns:
        {"prompt", "arms": {arm: {"text", "score"}}}, of the prompts that all arms continued.
    """
    names = list(files)
    chosen = _lowest_hashes(files[names[0]], count)
    pairs = {str(record["id"]): {"prompt": record["prompt"]["text"][:_MOST_CHARS],
                                 "arms": {names[0]: _first(record, attribute)}} for record in chosen}
    for arm in names[1:]:
        for record in read_jsonl(files[arm], required=("id", "generations")):
            if pair := pairs.get(str(record["id"])):
                pair["arms"][arm] = _first(record, attribute)
    return [pair for pair in pairs.values() if len(pair["arms"]) == len(names)]


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
