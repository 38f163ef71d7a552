"""A judge's verdicts as a measure: shares with intervals, no decision counted, and precision and recall per class
where the truth is known.
"""

from __future__ import annotations

import heapq
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llm_detox.data.chats import Messages, read_chats
from llm_detox.data.records import JsonlAppender, Record, hash_fraction, read_jsonl, write_jsonl
from llm_detox.errors import DetoxError
from llm_detox.evaluation.intervals import share_interval
from llm_detox.generation.chat import NO_ANSWER
from llm_detox.judge.judge import Judge, Verdict, judge_fingerprint, open_judge, undecided
from llm_detox.progress import say, task
from llm_detox.recipe import Recipe
from llm_detox.runs.folders import StepFolder, step_folder

VERDICTS, JUDGE_REPORT = "verdicts.jsonl", "judge.json"
_ORDERED = "verdicts.ordered.jsonl"
_LABELS = ("safe", "unsafe")


def judge_conversations(recipe: Recipe, *, conversations: Path, model: str | None, output: Path) -> dict[str, Any]:
    """Judge the last answer of each conversation.

    Args:
        recipe: its `judge.reader` and constitution.
        conversations: `{"id", "messages"}` lines that end with an answer; where each has a `label` ("safe" or
            "unsafe"), the judge is measured against them.
        model: the judge's model in place of the recipe's.
        output: gets `verdicts.jsonl` (`id, verdict, category, evaluation, reason`, in input order) and `judge.json`.

    Returns:
        What `judge.json` holds: see `summarise_verdicts`; with labels also `agreement` (`judge_agreement`).

    Raises:
        DetoxError: malformed conversations or labels, labels of one class, or a judge that cannot be had. Verdicts
            given so far are kept, and the next run goes on behind them.
    """
    records = read_chats(conversations, answered=True)
    labels = _labels(records, conversations)
    source = model or recipe.judge.reader.model
    settings = {"seed": recipe.seed, "judge": judge_fingerprint(recipe, source)}
    with step_folder(output, "verdicts", settings=settings, inputs={"conversations": conversations},
                     resumable=True) as folder:
        verdicts = read_all(open_judge(recipe, model), records, folder)
        confidence = recipe.evaluation.confidence
        report = {"model": source, "fingerprint": settings["judge"], **summarise_verdicts(verdicts, confidence)}
        if labels:
            found = judge_agreement(labels, [record["verdict"] for record in verdicts], confidence)
            report["agreement"] = without_nan(found)
        (folder / JUDGE_REPORT).write_text(json.dumps(report, indent=2, ensure_ascii=False), "utf-8")
        folder.counts = {name: report[name] for name in ("judged", *_LABELS, "undecided")}
        folder.result = report
        _tell(report)
        return report


def judge_generations(recipe: Recipe, generations: Path, folder: StepFolder) -> dict[str, Any]:
    """Judge the first continuation of `evaluation.judged_prompts` prompts, which are the same for every arm.

    Args:
        generations: an evaluation's `generations.jsonl`.
        folder: gets `verdicts.jsonl`; verdicts that an ended run left there are not asked for again.

    Returns:
        See `summarise_verdicts`; a missing continuation is no decision.
    """
    everything = ({"id": str(record["id"]), "messages": _as_chat(record)}
                  for record in read_jsonl(generations, required=("id", "prompt", "generations")))
    records: list[Record] = heapq.nsmallest(recipe.evaluation.judged_prompts, everything,
                                            key=lambda record: hash_fraction(str(record["id"]), "judged"))
    verdicts = read_all(open_judge(recipe), records, folder)
    return {"model": recipe.judge.reader.model, "fingerprint": judge_fingerprint(recipe),
            **summarise_verdicts(verdicts, recipe.evaluation.confidence)}


def _as_chat(record: Record) -> Messages:
    return [{"role": "user", "content": record["prompt"]["text"]},
            {"role": "assistant", "content": record["generations"][0]["text"] or ""}]


def read_all(judge: Judge, records: Sequence[Record], folder: StepFolder) -> list[Record]:
    """Write the verdicts into the folder's `verdicts.jsonl`, as they come and at the end in the records' order.

    Verdicts that are there already, from a run that was ended, are not asked for again; answers that its server
    failed to give are.
    """
    with JsonlAppender(folder / VERDICTS) as out, task("judging", len(records), "answers") as work:
        verdicts = {record["id"]: record for record in out.existing if record["reason"] != NO_ANSWER}
        work.skip(len(verdicts))
        rest = [record for record in records if record["id"] not in verdicts]
        for identity, verdict in _verdicts(judge, rest, work.advance):
            verdicts[identity] = {"id": identity, **verdict.as_record()}
            out.write(verdicts[identity])
            out.flush()
    ordered = [verdicts[record["id"]] for record in records]
    write_jsonl(folder / _ORDERED, ordered)
    (folder / _ORDERED).replace(folder / VERDICTS)
    return ordered


def _verdicts(judge: Judge, records: Sequence[Record],
              on_progress: Callable[[int], None]) -> Iterator[tuple[str, Verdict]]:
    there = [record for record in records if record["messages"][-1]["content"].strip()]
    for record in records:
        if not record["messages"][-1]["content"].strip():
            on_progress(1)
            yield record["id"], undecided("there is no answer to judge")
    for index, verdict in judge.read([record["messages"] for record in there],
                                     keys=[record["id"] for record in there], on_progress=on_progress):
        yield there[index]["id"], verdict


def summarise_verdicts(verdicts: Sequence[Record], confidence: float) -> dict[str, Any]:
    """Shares of verdicts.

    Returns:
        `judged`, `safe`, `unsafe`, `undecided` (counts); `unsafe_share` of the decided ones and `no_decision` of
        all, each {"value", "low", "high"} with None for the share of nothing; `categories` of the unsafe and
        `reasons` of the undecided ones, counted.
    """
    found = Counter(record["verdict"] for record in verdicts)
    return {
        "judged": len(verdicts), "safe": found["safe"], "unsafe": found["unsafe"], "undecided": found[None],
        "unsafe_share": without_nan(share_interval(found["unsafe"], found["unsafe"] + found["safe"], confidence)),
        "no_decision": without_nan(share_interval(found[None], len(verdicts), confidence)),
        "categories": dict(Counter(record["category"] or "unnamed" for record in verdicts
                                   if record["verdict"] == "unsafe").most_common()),
        "reasons": dict(Counter(record["reason"] for record in verdicts if record["verdict"] is None).most_common())}


def without_nan(value: Any) -> Any:
    """The same with None for a rate of nothing: NaN is no JSON."""
    if isinstance(value, Mapping):
        return {name: without_nan(part) for name, part in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def _labels(records: Sequence[Record], place: Path) -> list[str]:
    """The records' labels; none where no record has one.

    Raises:
        DetoxError: some have one and others not, one is unknown, or all are the same.
    """
    labels = [record.get("label") for record in records]
    if set(labels) == {None}:
        return []
    for number, label in enumerate(labels, start=1):
        if label not in _LABELS:
            raise DetoxError(f"the label {label!r} is neither safe nor unsafe", place=f"{place}, record {number}",
                             remedy="label every conversation, or none")
    if len(set(labels)) < 2:
        raise DetoxError(f"all {len(labels)} conversations are labelled {labels[0]}", place=str(place),
                         remedy="a judge is measured on both classes: add some of the other, or leave the labels out")
    return [str(label) for label in labels]


def _tell(report: dict[str, Any]) -> None:
    say(f"{report['judged']} answers: {report['safe']} safe, {report['unsafe']} unsafe, "
        f"{report['undecided']} without a decision")
    for name, rates in report.get("agreement", {}).get("classes", {}).items():
        shown = ", ".join(f"{rate} {rates[rate]['value']:.1%} [{rates[rate]['low']:.1%}, {rates[rate]['high']:.1%}]"
                          for rate in ("precision", "recall") if rates[rate]["value"] is not None)
        say(f"  {name}: {shown} ({rates['support']} labelled so)")


def judge_agreement(labels: Sequence[str], verdicts: Sequence[str | None], confidence: float = 0.95) -> dict[str, Any]:
    """Precision and recall of each class. A verdict of None, no decision, is a miss of its class and has a rate.

    A test set with one class only tells nothing about precision, so both classes must be there.

    Args:
        labels: the true classes, such as "good" and "bad".
        verdicts: what the judge said.

    Returns:
        {"classes": {name: {"precision", "recall", "support"}}, "no_decision", "accuracy", "confusion"}, rates as
        {"value", "low", "high"}.

    Raises:
        ValueError: fewer than two classes, or verdicts that are not one for each label.
    """
    if len(labels) != len(verdicts):
        raise ValueError(f"{len(labels)} labels and {len(verdicts)} verdicts")
    names = sorted(set(labels))
    if len(names) < 2:
        raise ValueError("a judge is measured on both classes, the labels have one")
    confusion = Counter(zip(labels, verdicts, strict=True))
    classes: dict[str, Mapping[str, Any]] = {}
    for name in names:
        hits = confusion[name, name]
        said = sum(count for (_, verdict), count in confusion.items() if verdict == name)
        support = sum(count for (label, _), count in confusion.items() if label == name)
        classes[name] = {"precision": share_interval(hits, said, confidence),
                         "recall": share_interval(hits, support, confidence), "support": support}
    undecided = sum(verdict is None for verdict in verdicts)
    right = sum(confusion[name, name] for name in names)
    return {"classes": classes, "no_decision": share_interval(undecided, len(labels), confidence),
            "accuracy": share_interval(right, len(labels), confidence),
            "confusion": {f"{label} -> {verdict or 'no decision'}": count
                          for (label, verdict), count in sorted(confusion.items(), key=str)}}
