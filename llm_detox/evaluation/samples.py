"""Before and after: texts for the report's browser, chosen by a hash and never by how well they look."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from llm_detox.data.records import Record, hash_fraction, read_jsonl

_MOST_CHARS = 600


@dataclass(frozen=True)
class ScoredText:
    """A continuation with its score; None where it has none."""

    text: str
    score: float | None


@dataclass(frozen=True)
class ContinuationSample:
    """A prompt with the first continuation of each arm."""

    prompt: str
    arms: dict[str, ScoredText]


@dataclass(frozen=True)
class RewriteSample:
    """A rewritten record of the detoxify step."""

    original: str
    text: str
    method: str
    scores: dict[str, float]


def continuation_samples(files: Mapping[str, Path], attribute: str, count: int) -> list[ContinuationSample]:
    """The first continuation of the same prompts from each arm's `generations.jsonl`.

    The prompts are those with the lowest hash of their id, so the choice does not look at the texts.

    Args:
        files: arm -> its file; the first arm's prompts are chosen from.
        attribute: whose score is shown.
        count: of prompts, at most; those that not all arms continued are left out.
    """
    names = list(files)
    chosen = _lowest_hashes(read_jsonl(files[names[0]], required=("id", "generations")), count)
    samples = {str(record["id"]): ContinuationSample(
        record["prompt"]["text"][:_MOST_CHARS], {names[0]: _first(record, attribute)}) for record in chosen}
    for arm in names[1:]:
        for record in read_jsonl(files[arm], required=("id", "generations")):
            if sample := samples.get(str(record["id"])):
                sample.arms[arm] = _first(record, attribute)
    return [sample for sample in samples.values() if len(sample.arms) == len(names)]


def _lowest_hashes(records: Iterable[Record], count: int) -> list[Record]:
    return heapq.nsmallest(count, records, key=lambda record: hash_fraction(str(record["id"]), "report-samples"))


def _first(record: Record, attribute: str) -> ScoredText:
    generation = record["generations"][0]
    return ScoredText(str(generation["text"] or "")[:_MOST_CHARS], generation.get(attribute))


def rewrite_samples(records: Path, count: int) -> tuple[list[RewriteSample], dict[str, int]]:
    """Rewritten records of the detoxify step, chosen by hash; and how many records had which fate."""
    fates = Counter(str(record["action"]) for record in read_jsonl(records, required=("id", "action")))
    rewritten = (record for record in read_jsonl(records) if record["action"] == "rewritten")
    return [RewriteSample(
        str(record.get("original") or "")[:_MOST_CHARS], str(record.get("text") or "")[:_MOST_CHARS],
        str(record.get("method") or ""),
        {str(name): value for name, value in (record.get("scores") or {}).items() if isinstance(value, int | float)})
        for record in _lowest_hashes(rewritten, count)], dict(fates)
