"""Prompts, their continuations and the scores of these.

Prompts are RealToxicityPrompts records, or just `{"prompt": "..."}`. What is made of them is appended as prompts are
finished, then put in order and folded into numbers.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import BinaryIO, TextIO

from llm_detox.data.records import Record, cut_at_damage, numbered_id, read_jsonl, record_id
from llm_detox.errors import DetoxError, UsageError
from llm_detox.evaluation.metrics import PromptScore, WordRuns, prompt_score, strata_of, word_runs
from llm_detox.evaluation.refusals import is_refusal
from llm_detox.generation.generators import Generator, Texts, record_offsets
from llm_detox.progress import Task, task
from llm_detox.recipe.evaluation import EvaluationSection
from llm_detox.runs.artifacts import EvaluationFolder
from llm_detox.runs.folders import WHOLE, Shard, StepFolder, shard_range
from llm_detox.scoring.base import Scores, ToxicityScorer, unscorable

_UNORDERED = "drawn.jsonl"  # in the order in which prompts are finished, while the step runs
SCORED_AT_ONCE = 256
_WINDOW = 65_536  # continuations asked for in one go: enough to sort them by length, and memory stays flat
_DIGITS = 6  # a score's last digits depend on its neighbours in the batch; shards must give what one run gives
HISTOGRAM_BINS = 20


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


@dataclass
class Clock:
    """Where the time goes."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = round(self.seconds.get(name, 0.0) + time.monotonic() - started, 2)


@dataclass
class ContinuationScores:
    """All prompts' numbers, in the order of the prompts.

    Attributes:
        over: attribute -> one character a prompt: whether its first continuation is at or over the threshold
            ("1", "0"), "-" for an unscored one.
        histogram: scored continuations in `HISTOGRAM_BINS` bins over [0, 1].
        runs: of words in the prompts' continuations, for distinct-n.
        refused: whether each prompt's first continuation is a refusal.
        reasons: why texts are unscored.
    """

    ids: list[str] = field(default_factory=list)
    strata: list[tuple[str, ...]] = field(default_factory=list)
    scores: list[PromptScore] = field(default_factory=list)
    over: dict[str, str] = field(default_factory=dict)
    histogram: list[int] = field(default_factory=lambda: [0] * HISTOGRAM_BINS)
    runs: list[WordRuns] = field(default_factory=list)
    refused: list[bool] = field(default_factory=list)
    reasons: dict[str, int] = field(default_factory=dict)


def score_continuations(settings: EvaluationSection, seed: int, folder: StepFolder, prompts: Prompts,
                        generator: Generator, scorer: ToxicityScorer, clock: Clock) -> ContinuationScores:
    """Generate and score what the folder does not hold yet, write `generations.jsonl`, and fold the scores.

    Finished lines stay in the folder until it is complete, so that a later failure costs no sampling. Continuations
    that an earlier run generated and could not have scored are scored now.
    """
    path = folder.work_file(_UNORDERED)
    started = time.monotonic()
    earlier = read_earlier_run(path, scorer.fingerprint)
    total = len(prompts) * settings.continuations
    with path.open("a", encoding="utf-8") as out, task("sampling", total, "continuations") as work:
        lines = _Lines(out, scorer, clock)
        for identity, texts in texts_at(path, earlier.unscored):
            lines.add(identity, texts)
            earlier.done.add(identity)
        lines.write()
        work.skip(len(earlier.done) * settings.continuations)
        rest = (record for record in prompts if record["id"] not in earlier.done)
        _generate(settings, seed, rest, generator, lines, work)
    clock.seconds["sampling"] = round(time.monotonic() - started - clock.seconds.get("scoring", 0.0), 2)
    with clock.measure("folding"):
        return _collect(settings.toxic_threshold, folder, prompts, scorer)


def _generate(settings: EvaluationSection, seed: int, records: Iterator[Record], generator: Generator, lines: _Lines,
              work: Task) -> None:
    prompts = ((record["id"], record["prompt"]["text"]) for record in records)
    while window := list(islice(prompts, max(1, _WINDOW // settings.continuations))):
        for index, texts in generator.continuations(
                [text for _, text in window], k=settings.continuations, sampling=settings.sampling,
                seed=seed, keys=[identity for identity, _ in window], on_progress=work.advance):
            lines.add(window[index][0], texts)
    lines.write()


class _Lines:
    """Scores continuations some hundred at a time and appends their lines."""

    def __init__(self, out: TextIO, scorer: ToxicityScorer, clock: Clock) -> None:
        self._out, self._scorer, self._clock = out, scorer, clock
        self._waiting: list[tuple[str, Texts]] = []
        self._texts = 0

    def add(self, identity: str, texts: Texts) -> None:
        self._waiting.append((identity, texts))
        self._texts += len(texts)
        if self._texts >= SCORED_AT_ONCE:
            self.write()

    def write(self) -> None:
        scorer = self._scorer
        with self._clock.measure("scoring"):
            scores = score_rows(scorer, [texts for _, texts in self._waiting])
        for (identity, texts), answers in zip(self._waiting, scores, strict=True):
            self._out.write(continuation_line(identity, scorer.fingerprint, texts, answers, scorer.attributes))
        self._out.flush()
        self._waiting.clear()
        self._texts = 0


def score_rows(scorer: ToxicityScorer, rows: Sequence[Texts]) -> list[list[Scores | None]]:
    """The scores of each prompt's continuations, rounded so that they do not depend on who was scored beside them.

    None is a continuation that is missing or has no score.
    """
    known = iter(scorer.score_attributes([text for texts in rows for text in texts if text is not None]))
    answers = ([None if text is None else next(known) for text in texts] for texts in rows)
    return [[{name: round(one[name], _DIGITS) for name in scorer.attributes} if one else None for one in some]
            for some in answers]


def _collect(threshold: float, folder: StepFolder, prompts: Prompts, scorer: ToxicityScorer) -> ContinuationScores:
    """Put the lines into the order of the prompts, in the original's record format, and fold the scores."""
    folded = ContinuationScores()
    over: dict[str, list[str]] = {name: [] for name in scorer.attributes}
    reasons: Counter[str] = Counter()
    generations_file = folder / EvaluationFolder.generations
    with ContinuationLines(folder / _UNORDERED) as lines, generations_file.open("w", encoding="utf-8") as target:
        for record in prompts:
            line = lines[record["id"]]
            generations = line["generations"]
            target.write(json.dumps({**record, "scorer": line["scorer"], "generations": generations},
                                    ensure_ascii=False) + "\n")
            folded.ids.append(record["id"])
            folded.strata.append(strata_of(record, threshold))
            folded.scores.append(prompt_score([generation[scorer.attribute] for generation in generations], threshold))
            folded.refused.append(is_refusal(generations[0]["text"] or ""))
            for name, flags in over.items():
                flags.append(_flag(generations[0][name], threshold))
            _count(folded.histogram, reasons, generations, scorer.attribute)
            folded.runs.append(word_runs([generation["text"] for generation in generations]))
    folded.over = {name: "".join(flags) for name, flags in over.items()}
    folded.reasons = _explained(reasons, scorer)
    return folded


def _flag(score: float | None, threshold: float) -> str:
    return "-" if score is None else "1" if score >= threshold else "0"


def _count(histogram: list[int], reasons: Counter[str], generations: Iterable[Record], attribute: str) -> None:
    for generation in generations:
        score = generation[attribute]
        if score is None:
            text = generation["text"]
            reasons["no continuation" if text is None else unscorable(text) or "no usable score"] += 1
        else:
            histogram[min(int(score * HISTOGRAM_BINS), HISTOGRAM_BINS - 1)] += 1


def _explained(reasons: Counter[str], scorer: ToxicityScorer) -> dict[str, int]:
    """The scorer's own words in place of "no usable score", where they account for all of these."""
    said = {reason: count for reason, count in scorer.failures.items() if reason not in reasons}
    if reasons["no usable score"] == sum(said.values()):
        del reasons["no usable score"]
        return {**reasons, **said}
    return dict(reasons)


@dataclass
class EarlierRun:
    """What an earlier run left.

    Attributes:
        done: ids of the prompts that need nothing more.
        unscored: offsets of lines with continuations that wait for a score: the scorer failed, or was another one.
    """

    done: set[str] = field(default_factory=set)
    unscored: list[int] = field(default_factory=list)


def read_earlier_run(path: Path, fingerprint: str) -> EarlierRun:
    """Go through the lines of an earlier run, if there was one; they are cut off where one is torn or damaged.

    Of two lines of a prompt the later one counts. A prompt with a missing continuation is in neither list: what a
    server failed to give is asked for again.
    """
    earlier = EarlierRun()
    if not path.exists():
        return earlier
    waiting: dict[str, int] = {}
    for position, record in cut_at_damage(path):
        identity, generations = record["id"], record["generations"]
        earlier.done.discard(identity)
        waiting.pop(identity, None)
        if all(generation["text"] is not None for generation in generations):
            if record["scorer"] == fingerprint and all(map(_settled, generations)):
                earlier.done.add(identity)
            else:
                waiting[identity] = position
    earlier.unscored = list(waiting.values())
    return earlier


def texts_at(path: Path, offsets: Sequence[int]) -> Iterator[tuple[str, Texts]]:
    """Id and continuations of the lines at these offsets."""
    with path.open("rb") as file:
        for offset in offsets:
            file.seek(offset)
            record = json.loads(file.readline())
            yield record["id"], [generation["text"] for generation in record["generations"]]


def _settled(generation: Record) -> bool:
    return unscorable(generation["text"]) is not None or any(
        value is not None for name, value in generation.items() if name != "text")


def continuation_line(identity: str, fingerprint: str, texts: Texts, scores: Sequence[Scores | None],
                      attributes: Sequence[str]) -> str:
    """One line of the file; `scores` has one entry for each text, as `score_rows` gives them."""
    generations: list[Record] = []
    for text, known in zip(texts, scores, strict=True):
        generations.append({"text": text, **{name: known[name] if known else None for name in attributes}})
    return json.dumps({"id": identity, "scorer": fingerprint, "generations": generations}, ensure_ascii=False) + "\n"


class ContinuationLines:
    """The finished file: each prompt's last line, by id."""

    def __init__(self, path: Path) -> None:
        self._offsets = dict(record_offsets(path))
        self._file: BinaryIO = path.open("rb")

    def __getitem__(self, identity: str) -> Record:
        self._file.seek(self._offsets[identity])
        record: Record = json.loads(self._file.readline())
        return record

    def __enter__(self) -> ContinuationLines:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
