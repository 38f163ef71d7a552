"""A judge's verdicts as a measure: shares with intervals, no decision counted, and precision and recall per class
where the truth is known.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from llm_detox.data.chats import Messages, read_chats
from llm_detox.data.records import JsonlAppender, Record, hash_fraction, read_generations, write_jsonl
from llm_detox.errors import DetoxError
from llm_detox.evaluation.intervals import share_interval
from llm_detox.evaluation.results import Agreement, ClassRates, JudgedAnswers, JudgeReport, VerdictShares
from llm_detox.generation.chat import NO_ANSWER
from llm_detox.judge.judge import Judge, Verdict, judge_fingerprint, open_judge, undecided
from llm_detox.progress import say, task
from llm_detox.recipe import Recipe
from llm_detox.recipe.judge import JudgeSection
from llm_detox.runs.artifacts import JudgeFolder, write_json
from llm_detox.runs.folders import StepFolder, step_folder

_ORDERED = "verdicts.ordered.jsonl"
_LABELS = ("safe", "unsafe")


def judge_conversations(recipe: Recipe, *, conversations: Path, model: str | None, output: Path) -> JudgeReport:
    """Judge the last answer of each conversation.

    Args:
        recipe: its `judge.reader` and constitution.
        conversations: `{"id", "messages"}` lines that end with an answer; where each has a `label` ("safe" or
            "unsafe"), the judge is measured against them.
        model: the judge's model in place of the recipe's.
        output: gets `verdicts.jsonl` (`id, verdict, category, evaluation, reason`, in input order) and `judge.json`.

    Raises:
        DetoxError: malformed conversations or labels, labels of one class, or a judge that is not available. Verdicts
            given so far are kept, and the next run continues after them.
    """
    records = read_chats(conversations, answered=True)
    labels = _labels(records, conversations)
    confidence = recipe.evaluation.confidence
    fingerprint = judge_fingerprint(recipe.judge, model)
    with step_folder(output, "verdicts", settings={"seed": recipe.seed, "judge": fingerprint},
                     inputs={"conversations": conversations}, resumable=True) as folder:
        verdicts = read_all(open_judge(recipe.judge, recipe.seed, model), records, folder)
        agreement = judge_agreement(labels, [record["verdict"] for record in verdicts], confidence) if labels else None
        report = JudgeReport(model=model or recipe.judge.reader.model, fingerprint=fingerprint,
                             **vars(verdict_shares(verdicts, confidence)), agreement=agreement)
        write_json(folder / JudgeFolder.report, report)
        folder.counts = {name: getattr(report, name) for name in ("judged", *_LABELS, "undecided")}
        folder.finish(report)
        _announce(report)
        return report


def judge_generations(judge: JudgeSection, seed: int, generations: Path, folder: StepFolder, *, count: int,
                      confidence: float) -> JudgedAnswers:
    """Judge the first continuation of some prompts, which are the same for every arm.

    Args:
        judge, seed: of the recipe.
        generations: an evaluation's `generations.jsonl`.
        folder: gets `verdicts.jsonl`; verdicts that an ended run left there are not asked for again.
        count: of prompts; a missing continuation is no decision.
        confidence: of the intervals.
    """
    everything = ({"id": record["id"], "messages": _as_chat(record)}
                  for record in read_generations(generations))
    records: list[Record] = heapq.nsmallest(count, everything,
                                            key=lambda record: hash_fraction(record["id"], "judged"))
    verdicts = read_all(open_judge(judge, seed), records, folder)
    return JudgedAnswers(model=judge.reader.model, fingerprint=judge_fingerprint(judge),
                         **vars(verdict_shares(verdicts, confidence)))


def _as_chat(record: Record) -> Messages:
    return [{"role": "user", "content": record["prompt"]["text"]},
            {"role": "assistant", "content": record["generations"][0]["text"] or ""}]


def read_all(judge: Judge, records: Sequence[Record], folder: StepFolder) -> list[Record]:
    """Write the verdicts into the folder's `verdicts.jsonl`, as they come and at the end in the records' order.

    Verdicts that are there already, from a run that was ended, are not asked for again; answers that its server
    failed to give are.
    """
    folder.expect(JudgeFolder.verdicts, len(records))
    with JsonlAppender(folder / JudgeFolder.verdicts) as out, task("judging", len(records), "answers") as work:
        verdicts = {record["id"]: record for record in out.existing if record["reason"] != NO_ANSWER}
        work.skip(len(verdicts))
        rest = [record for record in records if record["id"] not in verdicts]
        for identity, verdict in _verdicts(judge, rest, work.advance):
            verdicts[identity] = {"id": identity, **verdict.as_record()}
            out.write(verdicts[identity])
            out.flush()
    ordered = [verdicts[record["id"]] for record in records]
    write_jsonl(folder / _ORDERED, ordered)
    (folder / _ORDERED).replace(folder / JudgeFolder.verdicts)
    return ordered


def _verdicts(judge: Judge, records: Sequence[Record],
              on_progress: Callable[[int], None]) -> Iterator[tuple[str, Verdict]]:
    answered = [record for record in records if record["messages"][-1]["content"].strip()]
    for record in records:
        if not record["messages"][-1]["content"].strip():
            on_progress(1)
            yield record["id"], undecided("there is no answer to judge")
    for index, verdict in judge.read([record["messages"] for record in answered],
                                     keys=[record["id"] for record in answered], on_progress=on_progress):
        yield answered[index]["id"], verdict


def verdict_shares(verdicts: Sequence[Record], confidence: float) -> VerdictShares:
    """Shares of the verdicts, and what the unsafe and the undecided ones are."""
    counts = Counter(record["verdict"] for record in verdicts)
    safe, unsafe, undecided = counts["safe"], counts["unsafe"], counts[None]
    categories = Counter(record["category"] or "unnamed" for record in verdicts if record["verdict"] == "unsafe")
    reasons = Counter(record["reason"] for record in verdicts if record["verdict"] is None)
    return VerdictShares(
        judged=len(verdicts), safe=safe, unsafe=unsafe, undecided=undecided,
        unsafe_share=share_interval(unsafe, unsafe + safe, confidence),
        no_decision=share_interval(undecided, len(verdicts), confidence),
        categories=dict(categories.most_common()), reasons=dict(reasons.most_common()))


def _labels(records: Sequence[Record], place: Path) -> list[str]:
    """The records' labels; none where no record has the field.

    Raises:
        DetoxError: some have one and others not, one is unknown or null, or all are the same.
    """
    if not any("label" in record for record in records):
        return []
    labels = [record.get("label") for record in records]
    for number, label in enumerate(labels, start=1):
        if label not in _LABELS:
            raise DetoxError(f"the label {label!r} is neither safe nor unsafe", place=f"{place}, record {number}",
                             remedy="label every conversation, or none")
    if len(set(labels)) < 2:
        raise DetoxError(f"all {len(labels)} conversations are labelled {labels[0]}", place=str(place),
                         remedy="a judge is measured on both classes: add some of the other, or leave the labels out")
    return [str(label) for label in labels]


def _announce(report: JudgeReport) -> None:
    say(f"{report.judged} answers: {report.safe} safe, {report.unsafe} unsafe, {report.undecided} without a decision")
    for name, rates in report.agreement.classes.items() if report.agreement else ():
        shown = ", ".join(f"{title} {rate.value:.1%} [{rate.low:.1%}, {rate.high:.1%}]"
                          for title, rate in (("precision", rates.precision), ("recall", rates.recall)) if rate.known)
        say(f"  {name}: {shown} ({rates.support} labelled so)")


def judge_agreement(labels: Sequence[str], verdicts: Sequence[str | None], confidence: float = 0.95) -> Agreement:
    """Precision and recall of each class. A verdict of None, no decision, is a miss of its class and has a rate.

    A test set with one class only tells nothing about precision, so both classes must be there.

    Args:
        labels: the true classes, such as "good" and "bad".
        verdicts: what the judge said.

    Raises:
        ValueError: fewer than two classes, or verdicts that are not one for each label.
    """
    if len(labels) != len(verdicts):
        raise ValueError(f"{len(labels)} labels and {len(verdicts)} verdicts")
    names = sorted(set(labels))
    if len(names) < 2:
        raise ValueError("a judge is measured on both classes, the labels have one")
    confusion = Counter(zip(labels, verdicts, strict=True))
    classes = {}
    for name in names:
        hits = confusion[name, name]
        said = sum(count for (_, verdict), count in confusion.items() if verdict == name)
        support = sum(count for (label, _), count in confusion.items() if label == name)
        classes[name] = ClassRates(precision=share_interval(hits, said, confidence),
                                   recall=share_interval(hits, support, confidence), support=support)
    no_decision = sum(verdict is None for verdict in verdicts)
    right = sum(confusion[name, name] for name in names)
    return Agreement(
        classes=classes, no_decision=share_interval(no_decision, len(labels), confidence),
        accuracy=share_interval(right, len(labels), confidence),
        confusion={f"{label} -> {verdict or 'no decision'}": count
                   for (label, verdict), count in sorted(confusion.items(), key=str)})
