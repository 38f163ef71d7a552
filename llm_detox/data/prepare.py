"""The data step: training comments, evaluation prompts and clean passages, apart from each other.

Each record's place is decided by a hash of its text (Gehman et al. 2020 split by file; here the text is all
there is), so a record never moves between training and evaluation when a source grows.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

from llm_detox.data.bad_records import STRICT, BadRecords
from llm_detox.data.labels import Labels, is_kept_from_scorers, read_label
from llm_detox.data.records import Record, clean_text, cut_at_word, hash_fraction, record_id, same_text_key, write_jsonl
from llm_detox.data.sources import column, fetch, read_rows
from llm_detox.errors import DetoxError
from llm_detox.progress import say, track
from llm_detox.recipe import Recipe
from llm_detox.recipe.base import Table
from llm_detox.recipe.data import TEMPLATE_FIELD, BudgetSection, CleanData, Conversations, PromptData, TextData
from llm_detox.recipe.scorers import Part, ScoringSection, source_name
from llm_detox.runs.artifacts import DataFolder
from llm_detox.runs.folders import step_folder

_EVALUATION_SHARE, _HELD_OUT_SHARE = 0.4, 0.2
_ATTRIBUTES = {"toxicity", "severe_toxicity", "identity_attack", "insult", "threat", "profanity", "sexually_explicit",
               "flirtation"}  # whole numbers under other names are ids and positions
_PROMPT_KEY_WORDS, _SHORTEST_PROMPT = 6, 3

T = TypeVar("T")


@dataclass(frozen=True)
class DataResult:
    """What the data step wrote.

    Args:
        scale: the share of the recipe's sizes that this machine got.
        counts: name of a file, without its ending -> number of its records.
        toxic_texts: how many of the texts are toxic.
        unlabelled, contradictory: how many texts of the source were left out for their labels.
        skipped: how many bad records were left out (`data.skip_bad_records`).
    """

    scale: float
    counts: dict[str, int]
    toxic_texts: int
    unlabelled: int
    contradictory: int
    skipped: int


def prepare_data(recipe: Recipe, *, output: Path) -> DataResult:
    """Write texts.jsonl, held_out.jsonl, prompts.jsonl, train_prompts.jsonl, clean.jsonl and clean_train.jsonl.

    Where bad records are left out, skipped.jsonl lists them.

    Raises:
        DetoxError: a source cannot be read, a column is missing, or nothing usable is left.
    """
    data, shared = recipe.data, _is_shared_with_a_scorer(recipe.data.texts, recipe.scoring)
    settings = {**recipe.settings("data", "budget"), "shared with a scorer": shared}
    with step_folder(output, "data", settings=settings, inputs={}) as folder:
        scale, bad = budget_scale(recipe.budget), BadRecords(data.skip_bad_records)
        evaluation, sampling = _prompts(data.prompts, scale, recipe.seed, bad)
        texts, held_out, labels = _texts(data.texts, scale, recipe.seed, set(evaluation), shared, bad)
        clean, clean_train = _clean(data.clean, scale, recipe.seed, bad)
        files = DataFolder(folder.path)
        if bad:
            write_jsonl(files.skipped, bad.listed())
        bad.say()
        for path, records in ((files.texts, texts), (files.held_out, held_out), (files.prompts, evaluation.values()),
                              (files.train_prompts, sampling.values()),
                              (files.clean, clean), (files.clean_train, clean_train)):
            folder.counts[path.stem] = write_jsonl(path, records)
            folder.expect(path.name, len(records))
        result = DataResult(scale, dict(folder.counts), sum(bool(record["toxic"]) for record in texts),
                            labels.unlabelled, len(labels.contradictory), len(bad))
        folder.finish(result)
        say("data: " + ", ".join(f"{count} {name}" for name, count in folder.counts.items()))
    return result


def _is_shared_with_a_scorer(texts: TextData, scoring: ScoringSection) -> bool:
    """Whether one of the recipe's scorers learns from the source of the training texts, or contains one that does."""
    parts = set[Part]().union(*(scorer.parts(lambda source: fetch(source, kind="model"))
                                for scorer in (scoring.training, scoring.judging, *scoring.others)))
    return ("ngram", source_name(texts.source)) in parts


def budget_scale(budget: BudgetSection) -> float:
    """The share of the recipe's sizes that this machine gets: its measured rate against the reference."""
    if budget.scale != "auto":
        return budget.scale
    from llm_detox.processes import matmul_gflops

    measured = matmul_gflops()
    scale = round(min(1.0, max(budget.smallest_scale, measured / budget.reference_gflops)), 2)
    say(f"this machine does {measured:.0f} of the {budget.reference_gflops:.0f} GFLOP/s that the recipe is sized for: "
        + ("full sizes" if scale == 1 else f"prompts and texts are cut to {scale:g} of theirs (budget.scale)"))
    return scale


def table_texts(table: Table, shorten: int | None = None, bad: BadRecords = STRICT) -> Iterator[tuple[Record, str]]:
    """Each record of a table with its cleaned text.

    Args:
        shorten: longer texts are cut at this number of characters.
        bad: takes the records without text.
    """
    for place, record in read_rows(table, bad):
        try:
            text = clean_text(text_in(record, table.text_column, place))
        except DetoxError as error:
            bad.leave_out(error)
            continue
        yield record, cut_at_word(text, shorten) if shorten else text


def text_in(record: Record, name: str, place: str) -> str:
    """The text in a column.

    Raises:
        DetoxError: the column is missing, or holds something else.
    """
    value = column(record, name, place)
    if not isinstance(value, str):
        raise DetoxError(f"the column {name!r} holds no text but {value!r:.40}", place=place,
                         remedy="name the column that holds the text")
    return value


def _read_training(settings: TextData, bad: BadRecords) -> Iterator[tuple[str, Record, str, list[str]]]:
    """Each record's place, itself, its text as the recipe puts it together, and the cleaned texts that it is made of.

    What is to be answered is taken as it is: line breaks and marks belong to a request.
    """
    columns = TEMPLATE_FIELD.findall(settings.template) if settings.template else [settings.text_column]
    for place, record in read_rows(settings, bad):
        try:
            raw = {name: text_in(record, name, place) for name in columns}
        except DetoxError as error:
            bad.leave_out(error)
            continue
        parts = {name: value.strip() if settings.answer_column else clean_text(value) for name, value in raw.items()}
        text = parts[settings.text_column] if settings.template is None else _filled(settings.template, parts)
        yield place, record, text, list(parts.values())


def _filled(template: str, values: Mapping[str, str]) -> str:
    """The template with its columns in place."""
    return "".join(values[piece] if turn % 2 else piece for turn, piece in enumerate(TEMPLATE_FIELD.split(template)))


def _sorted_by_hash(items: Iterable[T], text_of: Callable[[T], str], seed: int) -> list[T]:
    """Records, or what holds them, in an order that depends on their text and the seed alone."""
    return sorted(items, key=lambda item: hash_fraction(same_text_key(text_of(item)), f"order-{seed}"))


def _texts(settings: TextData, scale: float, seed: int, taken: set[str], shared: bool,
           bad: BadRecords) -> tuple[list[Record], list[Record], Labels]:
    """Comments of the wanted length, half toxic (or as the recipe says); harmless ones that are held out; and the
    labels of all that could be used."""
    by_key, labels = usable_texts(settings, taken, shared, bad)
    by_label: dict[bool, list[Record]] = {True: [], False: []}
    for key, record in by_key.items():
        if key not in labels.contradictory:
            by_label[bool(record["toxic"])].append(record)
    held_out = _hold_out(by_label[False], round(settings.held_out_count * scale), seed)
    count = round(settings.count * scale)
    toxic_count = round(count * settings.toxic_share) if settings.label_column is not None else 0
    chosen = [
        record for toxic, size in ((True, toxic_count), (False, count - toxic_count))
        for record in _sorted_by_hash(by_label[toxic], lambda record: record["text"], seed)[:size]
    ]
    if settings.max_chars == "mean":
        mean = sum(len(record["text"]) for record in chosen) / len(chosen)
        chosen = [record for record in chosen if len(record["text"]) <= mean]
    seen = set(by_key)
    for table in settings.benign:
        chosen += _benign(table, round(table.count * scale), settings.chat, seen, bad)
    if settings.label_column is None and not settings.benign:
        return chosen, held_out, labels
    return _sorted_by_hash(chosen, lambda record: record["text"], seed + 1), held_out, labels


def _hold_out(harmless: list[Record], count: int, seed: int) -> list[Record]:
    """Take a share of the texts out of the list, by hash, and give back as many of them as are wanted."""
    if not count:
        return []
    sides: dict[bool, list[Record]] = {True: [], False: []}
    for record in harmless:
        sides[hash_fraction(same_text_key(record["text"]), "held out") < _HELD_OUT_SHARE].append(record)
    harmless[:] = sides[False]
    return _sorted_by_hash(sides[True], lambda record: record["text"], seed)[:count]


def usable_texts(settings: TextData, taken: Collection[str] = (), shared: bool = False,
                 bad: BadRecords = STRICT) -> tuple[dict[str, Record], Labels]:
    """The texts of the wanted length, by their keys, none of which holds an evaluation prompt.

    Args:
        taken: keys of the evaluation prompts.
        shared: whether a scorer learns from this source; what it may learn is left out.
        bad: takes the records without text, and those whose label is neither.

    Raises:
        DetoxError: there is none, or too many labels say nothing.
    """
    longest = sys.maxsize if settings.max_chars == "mean" else settings.max_chars
    by_key: dict[str, Record] = {}
    labels, number, left_out = Labels(), 0, 0
    for place, record, text, parts in track(_read_training(settings, bad), "reading comments"):
        number += 1
        cleaned = map(clean_text, parts) if settings.answer_column else parts  # as a scorer's labelled text is
        if not settings.min_chars <= len(text) <= longest:
            continue
        key = same_text_key(text)
        if any(_first_words(one) in taken for one in (key, *(same_text_key(part) for part in parts if part != text))):
            continue
        if shared and not all(map(is_kept_from_scorers, map(same_text_key, cleaned))):
            left_out += 1
            continue
        toxic = answer = None
        try:
            if settings.label_column is not None:
                toxic = read_label(column(record, settings.label_column, place), place)
                if not labels.add(key, toxic):
                    continue
            if settings.answer_column and key not in by_key:
                answer = text_in(record, settings.answer_column, place)
        except DetoxError as error:
            bad.leave_out(error)
            continue
        if key not in by_key:
            by_key[key] = {"id": record_id(text), "text": text, "toxic": toxic,
                           **_answered(text, answer, settings.chat)}
    labels.check(settings.source)
    if left_out:
        say(f"{settings.source}: a scorer learns from it, too; {left_out} texts are left to it, {len(by_key)} are not")
    if not by_key:
        raise DetoxError(f"none of {number} records can be used", place=settings.source,
                         remedy=f"texts of {settings.min_chars} to {settings.max_chars} characters are needed")
    return by_key, labels


def _answered(request: str, answer: str | None, chat: bool) -> Record:
    """The request with its answer, as training reads it."""
    if answer is None:
        return {}
    if chat:
        return {"messages": [{"role": "user", "content": request}, {"role": "assistant", "content": answer.strip()}]}
    return {"prompt": request, "completion": f" {answer.strip()}"}


def _benign(table: Conversations, count: int, chat: bool, seen: set[str], bad: BadRecords) -> Iterator[Record]:
    """Harmless conversations, in the order of their source."""
    fresh = 0
    for place, record in read_rows(table, bad):
        if fresh == count:
            return
        try:
            request, answer = (text_in(record, name, place).strip()
                               for name in (table.text_column, table.answer_column))
        except DetoxError as error:
            bad.leave_out(error)
            continue
        if request and answer and (key := same_text_key(request)) not in seen:
            seen.add(key)
            fresh += 1
            yield {"id": record_id(request), "text": request, "toxic": False, **_answered(request, answer, chat)}


def prompt_key(text: str) -> str:
    """Prompts that begin alike come from one sentence: they stay on one side of the split."""
    return _first_words(same_text_key(text))


def _first_words(key: str) -> str:
    return " ".join(key.split(" ", _PROMPT_KEY_WORDS)[:_PROMPT_KEY_WORDS])


def _prompts(settings: PromptData, scale: float, seed: int,
             bad: BadRecords) -> tuple[dict[str, Record], dict[str, Record]]:
    """Evaluation prompts and prompts for sampled pairs, by their keys; those with a known toxic score come first."""
    by_key: dict[str, Record] = {}
    short = 0
    for table in settings.sources:
        for record, text in table_texts(table, bad=bad):
            if len(key := prompt_key(text)) < _SHORTEST_PROMPT:
                short += 1
                continue
            asked = _filled(table.template, {table.text_column: text}) if table.template else text
            by_key.setdefault(key, {"id": record_id(asked), "prompt": {**_scores(record), "text": asked},
                                    "challenging": bool(record.get("challenging", False))})
    if short:
        say(f"{short} prompts have less than {_SHORTEST_PROMPT} letters and are left out")
    if not by_key:
        raise DetoxError("the prompt sources hold no prompts", place=settings.sources[0].source,
                         remedy="give RealToxicityPrompts records, {\"prompt\": ...} lines or plain lines")
    order = _sorted_by_hash(by_key.items(), lambda keyed: keyed[1]["prompt"]["text"], seed)
    order.sort(key=lambda keyed: keyed[1]["prompt"].get("toxicity", 0.0) < 0.5)
    sides: dict[bool, list[tuple[str, Record]]] = {True: [], False: []}
    for key, record in order:
        sides[settings.training_count == 0 or hash_fraction(key, "prompts") < _EVALUATION_SHARE].append((key, record))
    return (dict(sides[True][: round(settings.evaluation_count * scale)]),
            dict(sides[False][: round(settings.training_count * scale)]))


def _scores(record: Record) -> dict[str, float]:
    """The toxicity scores that a prompt record brings, in the original's or the flat form."""
    inner = record["prompt"] if isinstance(record.get("prompt"), dict) else record
    return {name: float(value) for name, value in inner.items()
            if (isinstance(value, float) or (type(value) is int and name in _ATTRIBUTES)) and 0 <= value <= 1}


def _clean(settings: CleanData, scale: float, seed: int,
           bad: BadRecords) -> tuple[list[Record], list[Record]]:
    """Clean passages to measure perplexity on, and others to mix into training."""
    by_key: dict[str, Record] = {}
    for table in settings.sources:
        for _, text in table_texts(table, settings.max_chars, bad):
            if len(text) >= settings.max_chars // 4:
                by_key.setdefault(same_text_key(text), {"id": record_id(text), "text": text})
    ordered = _sorted_by_hash(by_key.values(), lambda record: record["text"], seed)
    clean = [record for record in ordered if hash_fraction(record["id"], "clean") < _EVALUATION_SHARE]
    training = [record for record in ordered if hash_fraction(record["id"], "clean") >= _EVALUATION_SHARE]
    if not clean:
        raise DetoxError("the clean sources hold no passage long enough", place=settings.sources[0].source,
                         remedy=f"passages of at least {settings.max_chars // 4} characters are needed")
    return clean[: round(settings.count * scale)], list(islice(training, round(settings.training_count * scale)))
