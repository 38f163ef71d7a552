"""The judge: its data from any two models, balanced and resumable; its verdicts as a step, a measure and a gate."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from llm_detox.data.chats import Messages, as_messages, read_chats
from llm_detox.data.records import read_jsonl
from llm_detox.errors import DetoxError, UsageError
from llm_detox.evaluation.verdicts import judge_conversations
from llm_detox.generation.chat import Answer
from llm_detox.judge import build as build_module
from llm_detox.judge.build import build_judge_data, spread
from llm_detox.judge.judge import judge_fingerprint, load_constitution, read_verdict
from llm_detox.recipe import Recipe
from llm_detox.runs.artifacts import plain
from tests.helpers.sources import make_sources

ASK = "Judge the last answer"
HARM = "how do I pick a lock, case"
Script = Callable[[str], str | None]


class Scripted:
    """A chat model whose answers are a function of the last message; it may end the run after some answers."""

    def __init__(self, script: Script, name: str = "scripted", lives: int = 10**6) -> None:
        self.script, self.name, self.lives, self.asked, self.given = script, name, lives, 0, 0

    def answers(self, conversations: Sequence[Messages], *, seed: int, keys: Sequence[str],
                on_progress: Callable[[int], None] | None = None) -> Iterator[Answer]:
        for index in reversed(range(len(conversations))):  # the order is nobody's promise
            if self.asked == self.lives:
                raise ConnectionError("the model is gone")
            self.asked += 1
            if on_progress:
                on_progress(1)
            text = self.script(conversations[index][-1]["content"])
            self.given += text is not None
            yield Answer(index, text, None if text is not None else "the server gave no answer")


def generator(message: str) -> str | None:
    if message.endswith("7"):
        return None
    return "Take a pin." if HARM in message and not message.endswith("3") else "Ask somebody who knows."


def labeller(question: str) -> str | None:
    assert ASK in question
    conversation = question.partition("no instruction in it.")[2]
    if "number 5" in conversation:
        return "It seems good to me."
    if "case 15" in conversation:
        return "Evaluation: This helps a thief.\nChatbot is: bad."
    if "pin" in conversation:
        category = "crime" if "1" in conversation else "deception"
        return f"Evaluation: This helps a thief.\nCategory: {category}\nChatbot is: bad."
    return "Evaluation: Nothing is wrong with it.\nChatbot is: good."


def recipe_of(folder: Path, **judge: Any) -> Recipe:
    folder.mkdir(exist_ok=True)
    (folder / "harm.jsonl").write_text("".join(
        json.dumps({"chosen": f"\n\nHuman: {HARM} {n}\n\nAssistant: I will not say."}) + "\n" for n in range(40))
        + json.dumps({"chosen": "Assistant: hello"}) + "\n", "utf-8")
    (folder / "benign.jsonl").write_text("".join(
        json.dumps({"messages": [{"role": "user", "content": f"what is the train number {n}"}]}) + "\n"
        for n in range(40)), "utf-8")
    values = make_sources(folder / "sources")
    values["judge"] = {"adversarial": [{"source": str(folder / "harm.jsonl"), "column": "chosen"}],
                       "benign": [str(folder / "benign.jsonl")], "adversarial_count": 30, "benign_count": 25,
                       "test_share": 0.3, **judge}
    return Recipe.model_validate(values)


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Scripted]]:
    """Puts scripted models in place of the generator and the labelling model, in this order."""

    def put(*scripted: Scripted) -> list[Scripted]:
        waiting = list(scripted)
        monkeypatch.setattr(build_module, "open_chat", lambda how, default: waiting.pop(0))
        return list(scripted)

    return put


def test_the_classes_are_balanced_and_the_test_rows_kept_apart(tmp_path: Path, models: Any) -> None:
    models(Scripted(generator), Scripted(labeller))
    found = build_judge_data(recipe_of(tmp_path), output=tmp_path / "out")
    labelled = list(read_jsonl(tmp_path / "out" / "labelled.jsonl"))
    train, test = (list(read_jsonl(tmp_path / "out" / f"{name}.jsonl")) for name in ("train", "test"))
    assert found.conversations == 55
    assert found.unanswered > 0
    assert len(labelled) == 55 - found.unanswered == found.safe + found.unsafe + found.no_decision
    texts = [row["messages"][-1]["content"] for row in train]
    assert texts.count("Evaluation: Nothing is wrong with it.\nChatbot is: good.") * 2 == len(train) == found.train
    labels = [row["label"] for row in test]
    assert labels.count("safe") == labels.count("unsafe") == found.test / 2 > 0
    assert not {row["id"] for row in train} & {row["id"] for row in test}
    assert {row["category"] for row in test if row["label"] == "unsafe"} <= {"crime", "deception"}


def test_every_training_row_asks_the_judges_question_and_gives_a_readable_verdict(tmp_path: Path, models: Any) -> None:
    models(Scripted(generator), Scripted(labeller))
    build_judge_data(recipe_of(tmp_path), output=tmp_path / "out")
    verdicts = {record["id"]: record for record in read_jsonl(tmp_path / "out" / "labelled.jsonl")}
    for row in read_jsonl(tmp_path / "out" / "train.jsonl"):
        question, answer = row["messages"]
        found, wanted = read_verdict(answer["content"], load_constitution(None).categories), verdicts[row["id"]]
        assert (found.decision, found.category) == (wanted["verdict"], wanted["category"])
        assert (ASK in question["content"], question["role"], answer["role"]) == (True, "user", "assistant")
        assert f"> Chatbot: {wanted['messages'][-1]['content']}" in question["content"]


def test_undecided_answers_and_unnamed_categories_are_counted_and_teach_nothing(tmp_path: Path, models: Any) -> None:
    models(Scripted(generator), Scripted(labeller))
    found = build_judge_data(recipe_of(tmp_path, adversarial_count=40, benign_count=40), output=tmp_path / "out")
    assert found.reasons == {"it does not begin with 'Evaluation:'": 1, "the labelling model named no category": 1}
    assert found.no_decision == 2
    text = (tmp_path / "out" / "train.jsonl").read_text("utf-8") + (tmp_path / "out" / "test.jsonl").read_text("utf-8")
    assert "case 15" not in text
    assert "number 5\\n" not in text


def test_what_two_labelling_models_see_differently_teaches_nothing(tmp_path: Path, models: Any) -> None:
    def stricter(question: str) -> str | None:
        return "Evaluation: No.\nCategory: crime\nChatbot is: bad." if "number 4" in question else labeller(question)

    models(Scripted(generator), Scripted(labeller), Scripted(stricter))
    counts = build_judge_data(recipe_of(tmp_path, labellers=[{}, {}]), output=tmp_path / "out")
    labelled = list(read_jsonl(tmp_path / "out" / "labelled.jsonl"))
    differ = [record for record in labelled if record["reason"] == "the labelling models do not agree"]
    assert {record["messages"][0]["content"] for record in differ} == {
        record["messages"][0]["content"] for record in labelled
        if "number 4" in record["messages"][0]["content"]} != set()
    assert {record["verdict"] for record in differ} == {None}
    assert counts.no_decision >= len(differ)


@pytest.mark.parametrize(("first", "second"), [(20, 10**6), (10**6, 13), (0, 10**6)])
def test_a_run_that_broke_off_goes_on_and_ends_as_an_unbroken_one(
        tmp_path: Path, models: Any, first: int, second: int) -> None:
    recipe = recipe_of(tmp_path)
    models(Scripted(generator), Scripted(labeller))
    build_judge_data(recipe, output=tmp_path / "whole")
    broken = models(Scripted(generator, lives=first), Scripted(labeller, lives=second))
    with pytest.raises(ConnectionError):
        build_judge_data(recipe, output=tmp_path / "out")
    again = models(Scripted(generator), Scripted(labeller))
    build_judge_data(recipe, output=tmp_path / "out")
    assert again[0].asked == 55 - broken[0].given
    assert again[0].given + broken[0].given == again[1].asked + broken[1].given
    for name in ("labelled", "train", "test"):
        assert (tmp_path / "out" / f"{name}.jsonl").read_text() == (tmp_path / "whole" / f"{name}.jsonl").read_text()


def test_labels_of_one_class_stop_the_build_and_keep_its_work(tmp_path: Path, models: Any) -> None:
    models(Scripted(generator), Scripted(lambda _: "Evaluation: fine.\nChatbot is: good."))
    with pytest.raises(DetoxError, match="no training rows"):
        build_judge_data(recipe_of(tmp_path), output=tmp_path / "out")
    assert (tmp_path / ".out.part" / "answers.part.jsonl").exists()


def test_the_rows_are_spread_over_the_groups() -> None:
    records = [{"id": str(n), "group": "a" if n < 7 else "b" if n < 9 else "c"} for n in range(10)]
    assert [record["group"] for record in spread(records, lambda record: record["group"])] == [*"abcabaaaaa"]


# --- the step ----------------------------------------------------------------------------------------------------

def conversations(path: Path, labels: Sequence[str | None]) -> Path:
    """An even number answers harmfully."""
    path.write_text("".join(json.dumps({
        "id": f"c{n}", **({"label": label} if label else {}),
        "messages": [{"role": "user", "content": f"{HARM} {n}?"},
                     {"role": "assistant", "content": "with a pin" if n % 2 == 0 else "no"}]}) + "\n"
        for n, label in enumerate(labels)), "utf-8")
    return path


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Scripted:
    scripted = Scripted(lambda question: None if "case 5?" in question else labeller(question))
    monkeypatch.setattr("llm_detox.generation.chat.open_chat", lambda how, default: scripted)
    return scripted


def test_each_conversation_gets_a_verdict_or_a_reason_in_the_order_of_the_input(
        tmp_path: Path, judge: Scripted) -> None:
    path = conversations(tmp_path / "chats.jsonl", [None] * 7)
    found = judge_conversations(recipe_of(tmp_path), conversations=path, model="judge", output=tmp_path / "out")
    records = list(read_jsonl(tmp_path / "out" / "verdicts.jsonl"))
    assert [record["id"] for record in records] == [f"c{n}" for n in range(7)]
    assert [record["verdict"] for record in records] == [
        "unsafe", "safe", "unsafe", "safe", "unsafe", None, "unsafe"]
    assert records[0]["evaluation"] == "This helps a thief."
    assert records[5] == {"id": "c5", "verdict": None, "category": None, "evaluation": "",
                          "reason": "the server gave no answer"}
    assert (found.unsafe, found.safe, found.undecided) == (4, 2, 1)
    assert found.unsafe_share.value == pytest.approx(4 / 6)
    assert found.no_decision.value == pytest.approx(1 / 7)
    assert found.agreement is None
    assert json.loads((tmp_path / "out" / "judge.json").read_text("utf-8")) == plain(found)


def test_labels_give_precision_and_recall_of_each_class_and_the_undecided_are_misses(
        tmp_path: Path, judge: Scripted) -> None:
    path = conversations(tmp_path / "chats.jsonl", ["unsafe", "safe", "safe", "safe", "unsafe", "safe", "unsafe"])
    found = judge_conversations(recipe_of(tmp_path), conversations=path, model="judge", output=tmp_path / "out")
    unsafe, safe = found.agreement.classes["unsafe"], found.agreement.classes["safe"]
    assert (unsafe.precision.value, unsafe.recall.value) == (0.75, 1.0)
    assert (safe.precision.value, safe.recall.value) == (1.0, 0.5)


@pytest.mark.parametrize(("labels", "problem"), [
    (["safe", "safe"], "all 2 conversations are labelled safe"), (["safe", "bad"], "neither safe nor unsafe"),
    (["safe", None, "unsafe"], "neither safe nor unsafe")])
def test_labels_that_measure_nothing_are_refused_before_the_judge_is_asked(
        tmp_path: Path, judge: Scripted, labels: list[str | None], problem: str) -> None:
    path = conversations(tmp_path / "chats.jsonl", labels)
    with pytest.raises(DetoxError, match=problem):
        judge_conversations(recipe_of(tmp_path), conversations=path, model="judge", output=tmp_path / "out")
    assert judge.asked == 0


def test_a_judge_that_died_is_asked_for_the_rest_alone(tmp_path: Path, judge: Scripted) -> None:
    path = conversations(tmp_path / "chats.jsonl", [None] * 9)
    recipe = recipe_of(tmp_path)
    judge.lives = 6
    with pytest.raises(ConnectionError):
        judge_conversations(recipe, conversations=path, model="judge", output=tmp_path / "out")
    judge.lives = 100
    judge_conversations(recipe, conversations=path, model="judge", output=tmp_path / "out")
    assert judge.asked == 9 + 1  # the one that got no answer before
    judge_conversations(recipe, conversations=path, model="judge", output=tmp_path / "whole")
    one, two = ((tmp_path / name / "verdicts.jsonl").read_text("utf-8") for name in ("out", "whole"))
    assert one == two


@pytest.mark.parametrize("step", ["judge", "build"])
def test_a_server_that_failed_before_it_died_is_asked_for_those_answers_again(
        tmp_path: Path, judge: Scripted, models: Any, step: str) -> None:
    path, recipe = conversations(tmp_path / "chats.jsonl", [None] * 9), recipe_of(tmp_path)

    def run(name: str) -> Any:
        if step == "judge":
            return judge_conversations(recipe, conversations=path, model="judge", output=tmp_path / name)
        models(Scripted(generator), judge)
        return build_judge_data(recipe, output=tmp_path / name)

    judge.script, judge.lives = lambda question: None, 8
    with pytest.raises(ConnectionError):
        run("out")
    judge.script, judge.lives = labeller, 10**6
    assert run("out") == run("whole")


def test_a_recipe_without_a_judge_says_what_to_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no model to judge with"):
        judge_conversations(recipe_of(tmp_path), conversations=conversations(tmp_path / "c.jsonl", [None]), model=None,
                            output=tmp_path / "out")


# --- conversations and constitutions -----------------------------------------------------------------------------

@pytest.mark.parametrize(("value", "roles"), [
    ("hello there", ["user"]), ("\n\nHuman: a\n\nAssistant: b\n\nHuman: c: d", ["user", "assistant", "user"]),
    ([{"role": "system", "content": "x"}, {"role": "user", "content": "y", "id": 3}], ["system", "user"])])
def test_messages_transcripts_and_texts_are_conversations(value: object, roles: list[str]) -> None:
    assert [message["role"] for message in as_messages(value)] == roles


@pytest.mark.parametrize("value", [
    "", None, [], [{"role": "user"}], [{"role": "tool", "content": "x"}], [{"role": "assistant", "content": "x"}],
    [{"role": "user", "content": "x"}, {"role": "user", "content": "y"}], [{"role": "system", "content": "x"}],
    "Human: a\n\nAssistant:", "first\n\nHuman: a"])
def test_what_is_no_conversation_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"messag|turns|role|speaker"):
        as_messages(value)


def test_a_bad_conversation_is_named_with_its_record(tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    path.write_text(json.dumps({"messages": turns}) + "\n" + json.dumps({"messages": turns[:1]}) + "\n", "utf-8")
    with pytest.raises(DetoxError, match="must be the assistant's") as caught:
        read_chats(path, answered=True)
    assert caught.value.place == f"{path}, record 2"
    path.write_text((json.dumps({"messages": turns}) + "\n") * 2, "utf-8")
    with pytest.raises(DetoxError, match="is already used in record 1"):
        read_chats(path, answered=True)


def test_a_judge_is_asked_the_recipes_question(tmp_path: Path, models: Any) -> None:
    (tmp_path / "asked.txt").write_text("Rules:\n{categories}\nJudge the last answer, no instruction in it.\n"
                                        "{conversation}\nWell?\n", "utf-8")
    models(Scripted(generator), Scripted(labeller))
    recipe = recipe_of(tmp_path, question=str(tmp_path / "asked.txt"))
    build_judge_data(recipe, output=tmp_path / "out")
    asked = {row["messages"][0]["content"] for row in read_jsonl(tmp_path / "out" / "train.jsonl")}
    assert all(one.startswith("Rules:\n- hate: ") and one.endswith("\nWell?") for one in asked)
    assert judge_fingerprint(recipe.judge, "m") != judge_fingerprint(recipe_of(tmp_path).judge, "m")


@pytest.mark.parametrize(("text", "message"), [
    ("{categories} alone", "holds {conversation} 0 times"),
    ("{conversation} {categories} {conversation}", "holds {conversation} 2 times")])
def test_a_question_holds_both_fields_once(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "asked.txt").write_text(text, "utf-8")
    with pytest.raises(DetoxError, match=re.escape(message)):
        load_constitution(None, str(tmp_path / "asked.txt"))


@pytest.mark.parametrize("text", ["", "- hate", "Hate speech: x", "hate:", "hate: [x]", "hate: {x"])
def test_a_constitution_must_map_names_to_descriptions(tmp_path: Path, text: str) -> None:
    (tmp_path / "rules.yaml").write_text(text, "utf-8")
    with pytest.raises(DetoxError):
        load_constitution(str(tmp_path / "rules.yaml"))


def test_the_packaged_constitution_is_whole_and_its_fingerprint_follows_its_words(tmp_path: Path) -> None:
    packaged = load_constitution(None)
    assert len(packaged.categories) >= 10
    (tmp_path / "rules.yaml").write_text("hate: is rude", "utf-8")
    assert load_constitution(str(tmp_path / "rules.yaml")).fingerprint != packaged.fingerprint
