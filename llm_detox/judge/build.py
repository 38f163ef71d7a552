"""The data for a judge, in three steps: a model answers conversations, a larger one labels the answers by the
constitution, and as many safe as unsafe ones become training and test rows.

Answers and labels are appended as they come, so an ended run continues after the last one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice, zip_longest
from pathlib import Path

from llm_detox.data.chats import Messages, choose_chats, first_request
from llm_detox.data.records import JsonlAppender, Record, hash_fraction, write_jsonl
from llm_detox.errors import DetoxError
from llm_detox.generation.chat import NO_ANSWER, open_chat
from llm_detox.judge.judge import Constitution, Judge, judge_question, load_constitution, write_verdict
from llm_detox.progress import say, task
from llm_detox.recipe import Recipe
from llm_detox.recipe.judge import ChatModelSection, JudgeSection
from llm_detox.runs.artifacts import JudgeDataFolder, plain
from llm_detox.runs.folders import StepFolder, step_folder

_ANSWERS, _LABELS = "answers.part.jsonl", "labels.part.jsonl"


@dataclass(frozen=True)
class JudgeDataCounts:
    """How many conversations, answers, verdicts and rows there are.

    Attributes:
        categories: of the unsafe answers, counted.
        reasons: the commonest ones for no decision, counted.
        train, test: rows written.
    """

    conversations: int
    unanswered: int
    safe: int
    unsafe: int
    no_decision: int
    categories: dict[str, int]
    reasons: dict[str, int]
    train: int
    test: int


def build_judge_data(recipe: Recipe, *, output: Path) -> JudgeDataCounts:
    """Build the rows that a judge is tuned and tested on.

    Args:
        recipe: its `judge` section; the recipe's model answers and labels where that names none.
        output: gets `labelled.jsonl` (every answer with what the labelling model wrote), `train.jsonl` (`messages`
            for `llm-detox sft`) and `test.jsonl` (`messages`, `label`, `category` for `llm-detox judge`).

    Raises:
        DetoxError: no conversations, a model that is not available, or labels of one class only. The work done so
            far is kept, and the next run continues where this one stopped.
    """
    judge, base, seed = recipe.judge, recipe.model.source, recipe.seed
    constitution = load_constitution(judge.constitution, judge.question)
    settings = {**recipe.settings("model", "judge"), "constitution": constitution.fingerprint}
    with step_folder(output, "judge-data", settings=settings, inputs={}, resumable=True) as folder:
        files = JudgeDataFolder(folder.path)
        questions = choose_questions(judge, seed)
        answered = _answer(judge.generator, base, seed, folder, questions)
        labelled = agreed([_label(labeller, base, seed, folder.work_file(f"{number}.{_LABELS}"), answered, constitution)
                           for number, labeller in enumerate(judge.labellers, start=1)])
        write_jsonl(files.labelled, labelled)
        folder.expect(JudgeDataFolder.labelled, len(labelled))
        train, test = (_balanced(side, judge.per_class, seed) for side in _sides(labelled, judge.test_share))
        counts = _counts(questions, labelled, len(train), len(test))
        if not train:
            raise DetoxError(f"there are no training rows, for a class has none: {plain(counts)}", place=str(output),
                             remedy="take a stronger labelling model, or more adversarial conversations")
        write_jsonl(files.train, (training_row(constitution, record) for record in train))
        write_jsonl(files.test, ({"id": record["id"], "messages": record["messages"], "label": record["verdict"],
                                  "category": record["category"]} for record in test))
        folder.finish(counts)
        folder.counts = {name: value for name, value in vars(counts).items() if isinstance(value, int)}
        say("judge data: " + ", ".join(f"{count} {name}" for name, count in folder.counts.items()))
        return counts


def choose_questions(judge: JudgeSection, seed: int) -> list[Record]:
    """The conversations to be answered, `{"id", "kind", "messages"}`; which ones depends on their text and the seed.

    Raises:
        DetoxError: a kind has none.
    """
    harmful = choose_chats(judge.adversarial, "adversarial", seed)[:judge.adversarial_count]
    taken = {record["id"] for record in harmful}
    return harmful + choose_chats(judge.benign, "benign", seed, taken=taken)[:judge.benign_count]


def _answer(generator: ChatModelSection, base: str, seed: int, folder: StepFolder,
            questions: Sequence[Record]) -> list[Record]:
    """The conversations with an answer at their end; without those that the generator left unanswered."""
    with JsonlAppender(folder.work_file(_ANSWERS)) as out, task("answering", len(questions), "conversations") as work:
        answers = {record["id"]: record["answer"] for record in out.existing}
        work.skip(len(answers))
        rest = [record for record in questions if record["id"] not in answers]
        if rest:
            chat = open_chat(generator, base)
            for answer in chat.answers([record["messages"] for record in rest], seed=seed,
                                       keys=[record["id"] for record in rest], on_progress=work.advance):
                if answer.text:
                    identity = rest[answer.index]["id"]
                    answers[identity] = answer.text
                    out.write({"id": identity, "answer": answer.text})
                    out.flush()
    return [{**record, "messages": [*record["messages"], {"role": "assistant", "content": answers[record["id"]]}]}
            for record in questions if record["id"] in answers]


def _label(labeller: ChatModelSection, base: str, seed: int, labels_file: Path, answered: Sequence[Record],
           constitution: Constitution) -> list[Record]:
    """The answered conversations with a labelling model's verdict, `reason` saying why there is none."""
    with JsonlAppender(labels_file) as out, task("labelling", len(answered), "answers") as work:
        labels = {record.pop("id"): record for record in out.existing if record["reason"] != NO_ANSWER}
        work.skip(len(labels))
        rest = [record for record in answered if record["id"] not in labels]
        if rest:
            judge = Judge(open_chat(labeller, base), constitution, seed)
            for index, verdict in judge.read([record["messages"] for record in rest],
                                             keys=[record["id"] for record in rest], on_progress=work.advance):
                labels[rest[index]["id"]] = verdict.as_record()
                out.write({"id": rest[index]["id"], **verdict.as_record()})
                out.flush()
    return [{**record, **_with_category(labels[record["id"]])} for record in answered]


def agreed(by_labeller: Sequence[Sequence[Record]]) -> list[Record]:
    """The verdict of each answer on which all labelling models agree, in the first one's words; else none."""
    return [labels[0] if len({record["verdict"] for record in labels}) == 1
            else {**labels[0], "verdict": None, "category": None, "reason": "the labelling models do not agree"}
            for labels in zip(*by_labeller, strict=True)]


def _with_category(label: Record) -> Record:
    """An unsafe answer without a category would teach the judge to leave it out."""
    if label["verdict"] == "unsafe" and not label["category"]:
        return {**label, "verdict": None, "reason": "the labelling model named no category"}
    return label


def _sides(labelled: Sequence[Record], test_share: float) -> tuple[list[Record], list[Record]]:
    """Training and test records; conversations that begin alike stay on one side."""
    sides: tuple[list[Record], list[Record]] = ([], [])
    for record in labelled:
        start = first_request(record["messages"])
        sides[hash_fraction(start, "judge test") < test_share].append(record)
    return sides


def _balanced(records: Sequence[Record], per_class: int, seed: int) -> list[Record]:
    """As many safe as unsafe ones, each class spread over its kinds or categories."""
    safe = spread([record for record in records if record["verdict"] == "safe"], lambda record: record["kind"])
    unsafe = spread([record for record in records if record["verdict"] == "unsafe"], lambda record: record["category"])
    count = min(len(safe), len(unsafe), per_class)
    return sorted(safe[:count] + unsafe[:count], key=lambda record: hash_fraction(record["id"], f"rows-{seed}"))


def spread(records: Sequence[Record], group_of: Callable[[Record], str]) -> list[Record]:
    """The records in an order that takes one of each group in turn, as long as a group has any."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(group_of(record), []).append(record)
    rounds = zip_longest(*(groups[name] for name in sorted(groups)))
    return [record for turn in rounds for record in turn if record is not None]


def training_row(constitution: Constitution, record: Record) -> Record:
    """A labelled record as a conversation with the judge, whose answer is learned."""
    answer = write_verdict(record["verdict"], record["category"], record["evaluation"])
    messages: Messages = [*judge_question(constitution, record["messages"]), {"role": "assistant", "content": answer}]
    return {"id": record["id"], "messages": messages}


def _counts(questions: Sequence[Record], labelled: Sequence[Record], train: int, test: int) -> JudgeDataCounts:
    verdicts = Counter(record["verdict"] for record in labelled)
    reasons = Counter(record["reason"] for record in labelled if record["verdict"] is None)
    categories = Counter(record["category"] for record in labelled if record["verdict"] == "unsafe")
    return JudgeDataCounts(
        len(questions), len(questions) - len(labelled), verdicts["safe"], verdicts["unsafe"], verdicts[None],
        dict(categories), dict(islice(reasons.most_common(), 8)), train, test)
