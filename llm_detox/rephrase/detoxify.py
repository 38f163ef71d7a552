"""The step `detoxify`: toxic records are rewritten, kept or dropped, each with its audit trail.

Records are worked on in chunks of a fixed size, and a run that continues an interrupted one repeats the chunk in
which that one stopped. A batch therefore never depends on where an earlier run ended, nor on the shard.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from llm_detox.data.chats import checked
from llm_detox.data.records import JsonlAppender, Record, flag_of, read_jsonl, record_id, text_of, write_jsonl
from llm_detox.errors import DetoxError
from llm_detox.progress import task
from llm_detox.recipe import Recipe
from llm_detox.rephrase.build import MethodFactory
from llm_detox.runs.artifacts import RewrittenFolder
from llm_detox.runs.folders import WHOLE, Shard, digest_of, input_digest, read_manifest, shard_range, step_folder

CHUNK = 128
_BINS = 10


@dataclass(frozen=True)
class DetoxifyResult:
    """What became of the records.

    Attributes:
        records, kept, rewritten, dropped: how many.
        methods: rewritten records by method.
        refusals: reasons why candidates were refused, how often each.
        means: over the rewritten records.
        histograms: of toxicity and similarity over the rewritten records, ten bins from 0 to 1.
        shard: which part of the input.
        settings: digest of what decides the outcome; the shards of one run have the same.
    """

    records: int
    kept: int
    rewritten: int
    dropped: int
    methods: dict[str, int]
    refusals: dict[str, int]
    means: dict[str, float]
    histograms: dict[str, list[int]]
    shard: Shard
    settings: str


def detoxify(recipe: Recipe, *, texts: Path, output: Path, shard: Shard = WHOLE) -> DetoxifyResult:
    """Rewrite the toxic records of a JSON lines file.

    Args:
        texts: `{"id", "text"}` a line; a missing id is made from the text.
        output: the folder to write, with `records.jsonl`: `{"id", "text", "original", "action", "method",
            "scores", "reason", "tried"}`, one line for each input, in input order. `text` is empty where the
            action is `dropped`. `kept.jsonl` holds those that were left as they are.
        shard: (i, n), the i-th of n runs that share the input, counted from 0; the files of the shards, one after
            the other, are the file of an unsharded run.

    Raises:
        DetoxError: the input is empty or malformed, or a model or scorer cannot be loaded.
    """
    records = read_records(texts)
    settings = recipe.settings("detoxify", "scoring", "model")
    with step_folder(output, "rewritten", settings={**settings, "shard": list(shard)}, inputs={"texts": texts},
                     resumable=True) as folder:
        summary = Summary()
        chunks = shard_chunks(len(records), shard)
        folder.expect(RewrittenFolder.records, sum(map(len, chunks)))
        with JsonlAppender(folder / RewrittenFolder.records) as out, task("detoxify", sum(map(len, chunks))) as work:
            for record in out.existing:
                summary.add(record)
            work.skip(len(out.existing))
            workshop = MethodFactory(recipe)
            for part in outcomes(
                    lambda part: workshop.for_records(records).run(part), workshop, records, chunks, out):
                for outcome in part:
                    summary.add(outcome)
                work.advance(len(part))
        write_kept(folder.path)
        folder.counts = dict(summary.counts)
        result = summary.result(shard, digest_of(settings))
        folder.finish(result)
        return result


def join_shards(parts: Sequence[Path], *, texts: Path, output: Path) -> DetoxifyResult:
    """Put the outputs of the shards of one input together: what an unsharded run writes.

    Args:
        parts: the folders that `detoxify` wrote, in any order.
        texts: their input.
        output: the folder to write.

    Raises:
        DetoxError: a shard is missing or there twice, or they are not of this input and one recipe.
    """
    manifests = [read_manifest(part) for part in parts]
    shards = {tuple(manifest["result"]["shard"]): part for manifest, part in zip(manifests, parts, strict=True)}
    wanted = [(index, len(parts)) for index in range(len(parts))]
    if sorted(shards) != wanted:
        raise DetoxError(f"these are not the shards 0 to {len(parts) - 1} of {len(parts)}: {sorted(shards)}",
                         place=str(texts), remedy="pass every shard of one run once")
    settings = {manifest["result"]["settings"] for manifest in manifests}
    if len(settings) > 1 or any(manifest["inputs"]["texts"] != input_digest(texts) for manifest in manifests):
        raise DetoxError("the shards are of other texts, or of different recipes", place=str(texts),
                         remedy="pass the shards that one recipe made of this input")
    inputs = {"texts": texts, **{f"shard {index}": shards[index, total] for index, total in wanted}}
    with step_folder(output, "rewritten", settings={"shards": len(parts)}, inputs=inputs) as folder:
        summary = Summary()

        def counted() -> Iterator[Record]:
            for shard in wanted:
                for record in read_jsonl(RewrittenFolder(shards[shard]).records):
                    summary.add(record)
                    yield record

        folder.expect(RewrittenFolder.records, sum(1 for _ in read_jsonl(texts)))
        write_jsonl(folder / RewrittenFolder.records, counted())
        write_kept(folder.path)
        folder.counts = dict(summary.counts)
        result = summary.result(WHOLE, settings.pop())
        folder.finish(result)
        return result


def write_kept(folder: Path) -> None:
    """What filtering leaves in place of rewriting: the records that were acceptable as they were."""
    files = RewrittenFolder(folder)
    write_jsonl(files.kept, (record for record in read_jsonl(files.records) if record["action"] == "kept"))


def outcomes(
    run: Callable[[Sequence[Record]], Sequence[Record]], workshop: MethodFactory, records: Sequence[Record],
    chunks: Sequence[range], out: JsonlAppender,
) -> Iterator[list[Record]]:
    """What `run` makes of the records that `out` did not hold when it was opened, chunk by chunk, written."""
    done = len(out.existing)
    for chunk in chunks:
        if done >= len(chunk):
            done -= len(chunk)
            continue
        workshop.start_afresh()
        fresh = list(run([records[i] for i in chunk]))[done:]
        for outcome in fresh:
            out.write(outcome)
        out.flush()
        yield fresh
        done = 0


def read_records(texts: Path) -> list[Record]:
    """The input records, each with an id and a text.

    Raises:
        DetoxError: there is none, a text is not a string, or requests with answers are mixed with texts without.
    """
    records: list[Record] = []
    answered: bool | None = None  # of the first record
    for number, record in enumerate(read_jsonl(texts, required=("text",)), start=1):
        place = f"{texts}, record {number}"
        text, kept = text_of(record, "text", place), _answer_of(record, place)
        answered = bool(kept) if answered is None else answered
        if bool(kept) != answered:
            raise DetoxError("requests with answers and texts without answers are in one file",
                             place=place, remedy="detoxify them separately: texts are rewritten, requests refused")
        records.append({"id": record.get("id", record_id(text)), "text": text, **kept})
    if not records:
        raise DetoxError("no records to detoxify", place=str(texts), remedy='give lines such as {"text": "..."}')
    return records


def _answer_of(record: Record, place: str) -> Record:
    """What belongs to the text of a record that is a request with an answer; nothing of other texts.

    Raises:
        DetoxError: the answer, the label or the conversation is of another kind.
    """
    names = ("messages",) if "messages" in record else ("prompt", "completion")
    if not set(names) <= record.keys():
        return {}
    flag_of(record, "toxic", place)
    if "messages" in record:
        checked(record["messages"], place, answered=True)
    else:
        for name in names:
            text_of(record, name, place)
    return {name: record[name] for name in ("toxic", *names) if name in record}


def shard_chunks(count: int, shard: Shard = WHOLE) -> list[range]:
    """The chunks of a shard, as ranges of record numbers; neighbouring shards have neighbouring chunks.

    Raises:
        DetoxError: the shard is not one of its count.
    """
    chunks = [range(first, min(first + CHUNK, count)) for first in range(0, count, CHUNK)]
    return [chunks[number] for number in shard_range(len(chunks), shard)]


class Summary:
    """Adds up records one by one."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter({"records": 0, "kept": 0, "rewritten": 0, "dropped": 0})
        self._methods: Counter[str] = Counter()
        self._refusals: Counter[str] = Counter()
        self._histograms = {name: [0] * _BINS for name in ("toxicity_before", "toxicity_after", "similarity")}
        self._sums: Counter[str] = Counter()

    def add(self, record: Record) -> None:
        """Count one record of the audit trail."""
        self.counts["records"] += 1
        self.counts[record["action"]] += 1
        for attempt in record.get("tried", ()):
            self._refusals.update(attempt["refused"])
        if record["action"] != "rewritten":
            return
        self._methods[record["method"]] += 1
        for name, histogram in self._histograms.items():
            value = record["scores"].get(name)
            if value is not None:
                histogram[min(_BINS - 1, max(0, int(value * _BINS)))] += 1
                self._sums[name] += value
        if "perplexity_after" in record["scores"]:  # a refusal has none
            self._sums["perplexity_ratio"] += (
                record["scores"]["perplexity_after"] / record["scores"]["perplexity_before"])

    def result(self, shard: Shard, settings: str) -> DetoxifyResult:
        """The figures of the records that were added, which are this shard's."""
        rewritten = self.counts["rewritten"]
        means = {name: round(value / rewritten, 4) for name, value in self._sums.items()} if rewritten else {}
        return DetoxifyResult(**self.counts, methods=dict(self._methods), refusals=dict(self._refusals), means=means,
                              histograms=self._histograms, shard=shard, settings=settings)
