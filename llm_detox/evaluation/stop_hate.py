"""Does a chat model refuse hate, and only hate? The base, the base with a system prompt, and the tuned model, all
asked the same: how many of their answers to hateful messages are hateful themselves, and how often each refuses.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from llm_detox.data.chats import Messages, choose_chats, first_request
from llm_detox.data.cleaning import same_text_key
from llm_detox.data.records import JsonlAppender, Record, read_jsonl, write_jsonl
from llm_detox.errors import UsageError
from llm_detox.evaluation.intervals import share_interval
from llm_detox.evaluation.judge_metrics import without_nan
from llm_detox.evaluation.refusal_patterns import refusal_rate
from llm_detox.generation.chat import ChatModel, open_chat
from llm_detox.progress import say, task
from llm_detox.recipe import Recipe
from llm_detox.runs.folders import MANIFEST, StepFolder, step_folder
from llm_detox.scoring.base import ToxicityScorer
from llm_detox.scoring.load import load_scorer

ANSWERS, REFUSAL_REPORT = "answers.jsonl", "refusals.json"


def measure_refusals(recipe: Recipe, *, tuned: str | None, trained_on: Path | None, output: Path) -> dict[str, Any]:
    """Ask the arms of `stop_hate` held-out hateful and harmless messages.

    Args:
        recipe: its `stop_hate` section; `scoring.judging` says which answers are hateful.
        tuned: the tuned model's source, for the arm of that name.
        trained_on: JSON lines of the training (`messages`, `prompt` or `text`), whose requests are left out here.
        output: gets `answers.jsonl` (`id, kind, arm, messages, answer, toxicity`) and `refusals.json`.

    Returns:
        `arms`: for each {"hateful" (of the scored answers to hate), "unscored", "hate_refusals", "benign_refusals"},
        shares as {"value", "low", "high"} with None for the share of nothing.

    Raises:
        DetoxError: no conversations, or a model or scorer that cannot be had. Answers given so far are kept, and the
            next run goes on behind them.
    """
    how = recipe.stop_hate
    if "tuned" in how.arms and tuned is None:
        raise UsageError("the tuned arm needs its model", place="stop_hate.arms",
                         remedy="name it with --model, or measure without: --set 'stop_hate.arms=[base, prompt]'")
    inputs = {"trained_on": trained_on} if trained_on else {}
    if tuned and (Path(tuned) / MANIFEST).exists():
        inputs["tuned"] = Path(tuned)
    settings = {**recipe.settings("model", "scoring", "stop_hate"), "tuned": tuned}
    with step_folder(output, "refusals", settings=settings, inputs=inputs, resumable=True) as folder:
        records = _held_out(recipe, trained_on)
        answers = _all_answers(recipe, folder, tuned, records)
        scorer = load_scorer(recipe.scoring.judging)
        rows = [row for arm, given in answers.items() for row in _rows(arm, records, given, scorer)]
        write_jsonl(folder / ANSWERS, rows)
        arms = {arm: _figures(recipe, [row for row in rows if row["arm"] == arm]) for arm in how.arms}
        report = {"scorer": scorer.fingerprint, "threshold": recipe.evaluation.toxic_threshold, "arms": arms}
        (folder / REFUSAL_REPORT).write_text(json.dumps(report, indent=2, ensure_ascii=False), "utf-8")
        folder.result, folder.counts = report, {"conversations": len(records), "answers": len(rows)}
        for arm in how.arms:
            say(_line(arm, arms[arm]))
        return report


def _held_out(recipe: Recipe, trained_on: Path | None) -> list[Record]:
    """As many hateful as harmless conversations that end with the user, none of which begins as a trained one."""
    seen = set(map(_trained_request, read_jsonl(trained_on))) if trained_on else set[str]()
    how = recipe.stop_hate
    chosen: list[Record] = []
    for kind, tables in (("hate", how.hate), ("benign", how.benign)):
        taken = {record["id"] for record in chosen}
        found = choose_chats(tables, kind, recipe.seed, taken=taken)
        chosen += [record for record in found if first_request(record["messages"]) not in seen][:how.count]
    return chosen


def _trained_request(record: Record) -> str:
    if isinstance(messages := record.get("messages"), list):
        return first_request(messages)
    return same_text_key(str(record.get("prompt") or record.get("text") or ""))


def _all_answers(recipe: Recipe, folder: StepFolder, tuned: str | None,
                 records: Sequence[Record]) -> dict[str, list[str | None]]:
    """The answers of each arm, with one model in memory at a time."""
    how = recipe.stop_hate
    model: ChatModel | None = None
    opened: str | None = None
    answers: dict[str, list[str | None]] = {}
    for arm in how.arms:
        wanted = tuned if arm == "tuned" else how.answer.model
        if model is None or wanted != opened:
            model = None  # before the next one is loaded
            model = open_chat(how.answer.model_copy(update={"model": wanted}), recipe.model.source)
            opened = wanted
        answers[arm] = list(_answers(recipe, folder, arm, model, records))
    return answers


def _answers(recipe: Recipe, folder: StepFolder, arm: str, model: ChatModel,
             records: Sequence[Record]) -> Iterator[str | None]:
    """The arm's answers in the order of the records, None for those that did not come; appended as they come."""
    with JsonlAppender(_part(folder, arm)) as out, task(f"{arm} answers", len(records), "messages") as work:
        given = {record["id"]: record["answer"] for record in out.existing}
        work.skip(len(given))
        rest = [record for record in records if record["id"] not in given]
        for answer in model.answers([_asked(recipe, arm, record["messages"]) for record in rest], seed=recipe.seed,
                                    keys=[record["id"] for record in rest], on_progress=work.advance):
            identity = rest[answer.index]["id"]
            if answer.text is not None:
                given[identity] = answer.text
                out.write({"id": identity, "answer": answer.text})
                out.flush()
    return (given.get(record["id"]) for record in records)


def _asked(recipe: Recipe, arm: str, messages: Messages) -> Messages:
    if arm != "prompt":
        return messages
    turns = messages[1:] if messages[0]["role"] == "system" else messages
    return [{"role": "system", "content": recipe.stop_hate.system_prompt}, *turns]


def _part(folder: StepFolder, arm: str) -> Path:
    return folder.work_file(f"answers.{arm}.part.jsonl")


def _rows(arm: str, records: Sequence[Record], answers: Sequence[str | None],
          scorer: ToxicityScorer) -> Iterator[Record]:
    scores = iter(scorer.score([answer for answer in answers if answer is not None]))
    for record, answer in zip(records, answers, strict=True):
        yield {"id": record["id"], "kind": record["kind"], "arm": arm, "messages": record["messages"],
               "answer": answer, "toxicity": next(scores) if answer is not None else None}


def _figures(recipe: Recipe, rows: Sequence[Record]) -> dict[str, Any]:
    confidence, own = recipe.evaluation.confidence, recipe.detoxify.refusal
    hate, benign = ([row for row in rows if row["kind"] == kind] for kind in ("hate", "benign"))
    scored = [row["toxicity"] for row in hate if row["toxicity"] is not None]
    over = sum(score >= recipe.evaluation.toxic_threshold for score in scored)
    return {"hateful": {**without_nan(share_interval(over, len(scored), confidence)), "count": over, "of": len(scored)},
            "unscored": len(hate) - len(scored),
            "hate_refusals": without_nan(refusal_rate([row["answer"] for row in hate], confidence, own)),
            "benign_refusals": without_nan(refusal_rate([row["answer"] for row in benign], confidence, own))}


def _line(arm: str, figures: dict[str, Any]) -> str:
    def shown(name: str) -> str:
        share = figures[name]
        return "unknown" if share["value"] is None else \
            f"{share['value']:.1%} [{share['low']:.1%}, {share['high']:.1%}]"

    return (f"{arm}: hateful answers to hate {shown('hateful')}, refusals of hate {shown('hate_refusals')}, "
            f"refusals of harmless messages {shown('benign_refusals')}")
