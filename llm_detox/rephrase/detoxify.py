"""The step `detoxify`: toxic records are rewritten, kept or dropped, each with its audit trail.

Records are worked on in chunks of a fixed size, and a run that goes on behind an interrupted one repeats the
chunk in which it broke off. A batch therefore never depends on where an earlier run ended, nor on the shard.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from llm_detox.data.records import JsonlAppender, Record, read_jsonl, record_id
from llm_detox.errors import DetoxError, UsageError
from llm_detox.folders import step_folder
from llm_detox.progress import task
from llm_detox.recipe import Recipe
from llm_detox.rephrase.summary import Summary
from llm_detox.rephrase.workshop import Workshop

CHUNK = 128
RECORDS = "records.jsonl"


def detoxify(recipe: Recipe, *, texts: Path, output: Path, shard: tuple[int, int] = (0, 1)) -> dict[str, Any]:
    """Rewrite the toxic records of a JSON lines file.

    Args:
        texts: `{"id", "text"}` a line; a missing id is made from the text.
        output: the folder to write, with `records.jsonl`: `{"id", "text", "original", "action", "method",
            "scores", "reason", "tried"}`, one line for each input, in input order. `text` is empty where the
            action is `dropped`.
        shard: (i, n), the i-th of n runs that share the input, counted from 0; the files of the shards put one
            behind the other are the file of an unsharded run.

    Returns:
        counts by action and method, and histograms of toxicity, similarity and perplexity ratio.

    Raises:
        DetoxError: the input is empty or malformed, or a model or scorer cannot be loaded.
    """
    records = read_records(texts)
    settings = {**recipe.settings("detoxify", "scoring", "model"), "shard": list(shard)}
    with step_folder(output, "rewritten", settings=settings, inputs={"texts": texts}, resumable=True) as folder:
        summary = Summary()
        chunks = shard_chunks(len(records), shard)
        with JsonlAppender(folder / RECORDS) as out, task("detoxify", sum(map(len, chunks))) as work:
            for record in out.existing:
                summary.add(record)
            work.skip(len(out.existing))
            for outcome in _outcomes(Workshop(recipe), records, chunks, len(out.existing), out):
                summary.add(outcome)
                work.advance()
        folder.counts = dict(summary.counts)
        folder.result = summary.as_result()
        return folder.result


def _outcomes(
    workshop: Workshop, records: Sequence[Record], chunks: Sequence[range], done: int, out: JsonlAppender
) -> Iterator[Record]:
    """What is still to do, written as it comes."""
    for chunk in chunks:
        if done >= len(chunk):
            done -= len(chunk)
            continue
        workshop.start_afresh()
        for outcome in workshop.for_records(records).run([records[i] for i in chunk])[done:]:
            out.write(outcome)
            yield outcome
        out.flush()
        done = 0


def read_records(texts: Path) -> list[Record]:
    """The input records, each with an id and a text.

    Raises:
        DetoxError: there is none, or a text is no string.
    """
    records = []
    for number, record in enumerate(read_jsonl(texts, required=("text",)), start=1):
        if not isinstance(record["text"], str):
            raise DetoxError(f"the text is a {type(record['text']).__name__}, not a string",
                             place=f"{texts}, record {number}", remedy='write it as {"text": "..."}')
        answer = {name: record[name] for name in ("toxic", "messages", "prompt", "completion") if name in record}
        records.append({"id": record.get("id", record_id(record["text"])), "text": record["text"],
                        **(answer if len(answer) > 1 else {})})
    if not records:
        raise DetoxError("no records to detoxify", place=str(texts), remedy='give lines such as {"text": "..."}')
    return records


def read_shard(text: str) -> tuple[int, int]:
    """`2/8` -> (2, 8).

    Raises:
        UsageError: it is written otherwise, or there is no such shard.
    """
    index, slash, total = text.partition("/")
    if not (slash and index.isdecimal() and total.isdecimal() and int(index) < int(total)):
        raise UsageError(f"{text!r} is no shard", place="--shard", remedy="write i/n with i from 0 to n - 1, as in 0/4")
    return int(index), int(total)


def shard_chunks(count: int, shard: tuple[int, int] = (0, 1)) -> list[range]:
    """The chunks of a shard, as ranges of record numbers; neighbouring shards have neighbouring chunks.

    Raises:
        DetoxError: the shard is not one of its count.
    """
    index, total = shard
    if not 0 <= index < total:
        raise DetoxError(f"there is no shard {index} of {total}", remedy="shards count from 0: 0/4, 1/4, 2/4, 3/4")
    chunks = [range(first, min(first + CHUNK, count)) for first in range(0, count, CHUNK)]
    return chunks[len(chunks) * index // total: len(chunks) * (index + 1) // total]
