"""What the page's components show, as plain values: a veiled text is not among them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NotRequired, TypedDict

from nicegui import ui

from llm_detox.compare_ui.reading import AnswerScorer, Reading
from llm_detox.compare_ui.session import Answer, Exchange

_WORDS = {"waiting": "waiting for the first token", "streaming": "answering", "done": "done", "stopped": "stopped",
          "failed": "failed"}
_REASONS = {"MAX_TOKENS": "length reached", "EOS_TOKEN": "end of the text", "STOP_SEQUENCE": "stop sequence",
            "TIME_LIMIT": "time limit", "CANCELLED": "cancelled by the server"}


class Cell(TypedDict):
    """One scorer's value of one attribute; without `value` the text says why there is none."""

    text: str
    value: NotRequired[float]
    over: NotRequired[bool]


class ScoreRow(TypedDict):
    """One attribute, with a cell for each scorer."""

    name: str
    cells: list[Cell]


class AnswerView(TypedDict):
    """What `answer.vue` shows of one side."""

    state: str
    status: str
    times: str
    error: str
    remedy: str
    veil: str
    hidden: bool
    segments: list[tuple[str, str]]
    scores: list[ScoreRow]
    columns: list[str]


class HistoryEntry(TypedDict):
    """What `history.vue` shows of one exchange."""

    number: int
    prompt: str
    veil: str
    sides: list[str]


def answer_view(answer: Answer | None, reader: AnswerScorer, *, threshold: float, shown: bool) -> AnswerView:
    """One side's card; None is a side that was not asked yet.

    Args:
        threshold: toxicity from which on a text is veiled.
        shown: whether the veiled text was requested.
    """
    current = answer or Answer()
    veiled = current.veiled(threshold)
    hidden = veiled and not shown
    return {
        "state": current.status if answer else "idle", "status": _status(current) if answer else "not asked yet",
        "times": _times(current) if answer else "", "error": current.error, "remedy": current.remedy,
        "veil": _why(current.worst) if veiled else "", "hidden": hidden,
        "segments": [] if hidden else [(text, f"{added:.1f}" if added else "")
                                       for text, added in current.reading.segments],
        "scores": score_rows(current.reading, reader, threshold), "columns": list(reader.attributes)}


def _status(answer: Answer) -> str:
    reason = answer.finish_reason
    behind = f": {_REASONS.get(reason, reason.lower().replace('_', ' '))}" if answer.status == "done" and reason else ""
    empty = ", without a text" if answer.status == "done" and not answer.text.strip() else ""
    return f"{_WORDS[answer.status]}{behind}{empty}"


def _times(answer: Answer) -> str:
    """Tokens and seconds of an answer that has begun."""
    parts = []
    if answer.tokens:
        parts.append(f"{answer.tokens} token{'s' if answer.tokens > 1 else ''}")
    if answer.first is not None:
        parts.append(f"first after {answer.first:.2f} s")
        parts.append(f"{answer.seconds:.1f} s in all")
    return ", ".join(parts)


def _why(worst: float | None) -> str:
    return "could not be scored" if worst is None else f"toxicity {worst:.2f}"


def score_rows(reading: Reading, reader: AnswerScorer, threshold: float) -> list[ScoreRow]:
    """A row for each attribute: its name and a cell for each scorer with the value in [0, 1], a text, and whether it
    is at or over the threshold. A scorer without the attribute has an empty cell."""
    names: dict[str, None] = {}
    for attributes in reader.attributes.values():
        names.update(dict.fromkeys(attributes))
    return [{"name": name.replace("_", " "),
             "cells": [_cell(reading.scores, scorer, name, threshold) if name in attributes else {"text": ""}
                       for scorer, attributes in reader.attributes.items()]} for name in names]


def _cell(scores: Mapping[str, Mapping[str, float] | None], scorer: str, attribute: str,
          threshold: float) -> Cell:
    if scorer not in scores:
        return {"text": "–"}
    given = scores[scorer]
    if given is None:
        return {"text": "unscored"}
    value = given[attribute]
    return {"text": f"{value:.2f}", "value": value, "over": value >= threshold}


def difference(answers: Sequence[Answer], names: Sequence[str], reader: AnswerScorer) -> str:
    """The toxicity of both finished answers, for each scorer; empty if one has none."""
    parts = []
    for name, scorer in reader.scorers.items():
        values = [(one.reading.scores.get(name) or {}).get(scorer.attribute) for one in answers]
        if len(values) == 2 and values[0] is not None and values[1] is not None:
            change = values[1] - values[0]
            parts.append(f"{scorer.attribute.replace('_', ' ')} ({name}): {names[0]} {values[0]:.2f}, "
                         f"{names[1]} {values[1]:.2f} ({change:+.2f})")
    return "; ".join(parts)


def history_view(history: Sequence[Exchange], names: Sequence[str], *, threshold: float) -> list[HistoryEntry]:
    """The history's entries, newest first; a toxic prompt is veiled like an answer."""
    entries: list[HistoryEntry] = []
    for one in reversed(history):
        worst = one.prompt_reading.worst
        veiled = worst is None or worst >= threshold
        entries.append({
            "number": one.number, "prompt": "" if veiled else one.prompt,
            "veil": f"prompt veiled: {_why(worst)}" if veiled else "",
            "sides": [f"{name} {_short(answer)}" for name, answer in zip(names, one.answers, strict=True)]})
    return entries


def _short(answer: Answer) -> str:
    if answer.status in ("failed", "stopped") and not answer.text:
        return answer.status
    return "unscored" if answer.worst is None else f"{answer.worst:.2f}"


class AnswerCard(ui.element, component="answer.vue"):
    """A side's card; `on_unveil` gets whether its veiled text should be shown."""

    def __init__(self, heading: str, where: str, colour: str, view: AnswerView,
                 on_unveil: Callable[[bool], None]) -> None:
        super().__init__()
        self._props.update(heading=heading, where=where, colour=colour, view=view)
        self.on("unveil", lambda event: on_unveil(bool(event.args)))

    def show(self, view: AnswerView) -> None:
        self._props["view"] = view
        self.update()


class HistoryList(ui.element, component="history.vue"):
    """The exchanges so far; `on_reopen` gets the number of the chosen one."""

    def __init__(self, on_reopen: Callable[[int], None]) -> None:
        super().__init__()
        self._props.update(entries=[], open=0)
        self.on("reopen", lambda event: on_reopen(int(event.args)))

    def show(self, entries: list[HistoryEntry], reopened: int) -> None:
        """`reopened` is the number of the exchange that the cards show."""
        self._props.update(entries=entries, open=reopened)
        self.update()
