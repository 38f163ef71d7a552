"""Does a chat model refuse hate, and only hate? The base, the base with a system prompt, and the tuned model, all
asked the same: how many of their answers to hateful messages are hateful themselves, and how often each refuses.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llm_detox.data.chats import Messages, checked, choose_chats, first_request
from llm_detox.data.records import JsonlAppender, Record, read_jsonl, same_text_key, text_of, write_jsonl
from llm_detox.errors import UsageError
from llm_detox.evaluation.intervals import Interval, share_interval
from llm_detox.evaluation.refusals import RefusalShare, refusal_share
from llm_detox.generation.chat import ChatModel, open_chat
from llm_detox.progress import say, task
from llm_detox.recipe import Recipe
from llm_detox.recipe.evaluation import EvaluationSection
from llm_detox.recipe.judge import StopHateSection
from llm_detox.runs.artifacts import RefusalsFolder, write_json
from llm_detox.runs.folders import MANIFEST, StepFolder, step_folder
from llm_detox.scoring.base import ToxicityScorer
from llm_detox.scoring.load import load_scorer


@dataclass(frozen=True)
class HatefulShare(Interval):
    """Answers to hate that are hateful themselves: `count` of the `of` scored ones."""

    count: int
    of: int


@dataclass(frozen=True)
class ArmRefusals:
    """What an arm answered; `unscored` answers to hate have no score."""

    hateful: HatefulShare
    unscored: int
    hate_refusals: RefusalShare
    benign_refusals: RefusalShare


@dataclass(frozen=True)
class RefusalReport:
    """The `refusals.json`; `scorer` is a fingerprint."""

    scorer: str
    threshold: float
    arms: dict[str, ArmRefusals]


def measure_refusals(recipe: Recipe, *, tuned: str | None, trained_on: Path | None, output: Path) -> RefusalReport:
    """Ask the arms of `stop_hate` held-out hateful and harmless messages.

    Args:
        recipe: its `stop_hate` section; `scoring.judging` says which answers are hateful.
        tuned: the tuned model's source, for the arm of that name.
        trained_on: JSON lines of the training (`messages`, `prompt` or `text`), whose requests are left out here.
        output: gets `answers.jsonl` (`id, kind, arm, messages, answer, toxicity`) and `refusals.json`.

    Raises:
        DetoxError: no conversations, or a model or scorer that is not available. Answers given so far are kept, and
            the next run continues after them.
    """
    experiment, seed = recipe.stop_hate, recipe.seed
    if "tuned" in experiment.arms and tuned is None:
        raise UsageError("the tuned arm needs its model", place="stop_hate.arms",
                         remedy="name it with --model, or measure without: --set 'stop_hate.arms=[base, prompt]'")
    inputs = {"trained_on": trained_on} if trained_on else {}
    if tuned and (Path(tuned) / MANIFEST).exists():
        inputs["tuned"] = Path(tuned)
    settings = {**recipe.settings("model", "scoring", "stop_hate"), "tuned": tuned}
    with step_folder(output, "refusals", settings=settings, inputs=inputs, resumable=True) as folder:
        records = _held_out(experiment, seed, trained_on)
        answers = _all_answers(experiment, seed, {"tuned": tuned}, recipe.model.source, folder, records)
        scorer = load_scorer(recipe.scoring.judging)
        rows = [row for arm, given in answers.items() for row in _rows(arm, records, given, scorer)]
        folder.expect(RefusalsFolder.answers, len(records) * len(experiment.arms))
        write_jsonl(folder / RefusalsFolder.answers, rows)
        report = RefusalReport(scorer.fingerprint, recipe.evaluation.toxic_threshold, {
            arm: _figures([row for row in rows if row["arm"] == arm], recipe.evaluation, recipe.detoxify.refusal)
            for arm in experiment.arms})
        write_json(folder / RefusalsFolder.report, report)
        folder.finish(report)
        folder.counts = {"conversations": len(records), "answers": len(rows)}
        for arm, figures in report.arms.items():
            say(_line(arm, figures))
        return report


def _held_out(experiment: StopHateSection, seed: int, trained_on: Path | None) -> list[Record]:
    """As many hateful as harmless conversations that end with the user, none of which begins as a trained one."""
    seen = {_trained_request(record, f"{trained_on}, record {number}")
            for number, record in enumerate(read_jsonl(trained_on), start=1)} if trained_on else set[str]()
    chosen: list[Record] = []
    for kind, tables in (("hate", experiment.hate), ("benign", experiment.benign)):
        taken = {record["id"] for record in chosen}
        records = choose_chats(tables, kind, seed, taken=taken)
        chosen += [record for record in records if first_request(record["messages"]) not in seen][:experiment.count]
    return chosen


def _trained_request(record: Record, place: str) -> str:
    if "messages" in record:
        return first_request(checked(record["messages"], place))
    return same_text_key(text_of(record, "prompt" if "prompt" in record else "text", place))


def _all_answers(experiment: StopHateSection, seed: int, sources: Mapping[str, str | None], base: str,
                 folder: StepFolder, records: Sequence[Record]) -> dict[str, list[str | None]]:
    """The answers of each arm, with one model in memory at a time; an arm that `sources` lacks is the base's."""
    model: ChatModel | None = None
    opened: str | None = None
    answers: dict[str, list[str | None]] = {}
    for arm in experiment.arms:
        source = sources.get(arm, experiment.answer.model)
        if model is None or source != opened:
            model = None  # before the next one is loaded
            model = open_chat(experiment.answer.model_copy(update={"model": source}), base)
            opened = source
        system = experiment.system_prompt if arm == "prompt" else None
        answers[arm] = list(_answers(folder, arm, model, records, seed, system))
    return answers


def _answers(folder: StepFolder, arm: str, model: ChatModel, records: Sequence[Record], seed: int,
             system: str | None) -> Iterator[str | None]:
    """The arm's answers in the order of the records, None for those that did not come; appended as they come."""
    with JsonlAppender(_part(folder, arm)) as out, task(f"{arm} answers", len(records), "messages") as work:
        given = {record["id"]: record["answer"] for record in out.existing}
        work.skip(len(given))
        rest = [record for record in records if record["id"] not in given]
        for answer in model.answers([_with_system(record["messages"], system) for record in rest], seed=seed,
                                    keys=[record["id"] for record in rest], on_progress=work.advance):
            identity = rest[answer.index]["id"]
            if answer.text is not None:
                given[identity] = answer.text
                out.write({"id": identity, "answer": answer.text})
                out.flush()
    return (given.get(record["id"]) for record in records)


def _with_system(messages: Messages, system: str | None) -> Messages:
    if system is None:
        return messages
    turns = messages[1:] if messages[0]["role"] == "system" else messages
    return [{"role": "system", "content": system}, *turns]


def _part(folder: StepFolder, arm: str) -> Path:
    return folder.work_file(f"answers.{arm}.part.jsonl")


def _rows(arm: str, records: Sequence[Record], answers: Sequence[str | None],
          scorer: ToxicityScorer) -> Iterator[Record]:
    scores = iter(scorer.score([answer for answer in answers if answer is not None]))
    for record, answer in zip(records, answers, strict=True):
        yield {"id": record["id"], "kind": record["kind"], "arm": arm, "messages": record["messages"],
               "answer": answer, "toxicity": next(scores) if answer is not None else None}


def _figures(rows: Sequence[Record], evaluation: EvaluationSection, own_refusal: str | None) -> ArmRefusals:
    confidence = evaluation.confidence
    hate, benign = ([row for row in rows if row["kind"] == kind] for kind in ("hate", "benign"))
    scored = [row["toxicity"] for row in hate if row["toxicity"] is not None]
    over = sum(score >= evaluation.toxic_threshold for score in scored)
    share = share_interval(over, len(scored), confidence)
    return ArmRefusals(HatefulShare(share.value, share.low, share.high, over, len(scored)), len(hate) - len(scored),
                       refusal_share([[row["answer"]] for row in hate], confidence, own_refusal),
                       refusal_share([[row["answer"]] for row in benign], confidence, own_refusal))


def _line(arm: str, figures: ArmRefusals) -> str:
    def shown(share: Interval) -> str:
        return f"{share.value:.1%} [{share.low:.1%}, {share.high:.1%}]" if share.known else "unknown"

    return (f"{arm}: hateful answers to hate {shown(figures.hateful)}, refusals of hate "
            f"{shown(figures.hate_refusals)}, refusals of harmless messages {shown(figures.benign_refusals)}")
