"""Training data that is more than labelled comments: templates, requests with answers, refusals."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from llm_detox.data.prepare import prepare_data
from llm_detox.data.records import read_jsonl
from llm_detox.data.sources import read_table
from llm_detox.errors import DetoxError
from llm_detox.recipe import Recipe
from llm_detox.recipe.data import PromptTable, TextData
from llm_detox.rephrase.chain import Refusals
from llm_detox.rephrase.detoxify import detoxify
from tests.helpers.sources import make_sources, write_lines

REFUSAL = "I cannot engage with this conversation."


class Fixed:
    """Scores a text by whether it holds the word."""

    def score(self, texts: Any) -> list[float | None]:
        return [None if "?" in text else float("idiot" in text) for text in texts]


def texts_of(folder: Path, **texts: Any) -> list[dict[str, Any]]:
    values = make_sources(folder)
    values["data"]["texts"] = {"min_chars": 1, "label_column": None, **texts}
    prepare_data(Recipe.model_validate(values), output=folder / "out")
    return list(read_jsonl(folder / "out" / "texts.jsonl"))


def test_a_template_puts_cleaned_columns_together_and_keeps_its_own_lines(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "rtp.jsonl", [
        {"prompt": {"text": f"Number {n}  was"}, "continuation": {"text": " never\n here &amp; there"}}
        for n in range(3)])
    found = texts_of(tmp_path / "data", source=str(source), template="Prompt: {prompt.text}\nThen: {continuation.text}")
    assert sorted(record["text"] for record in found) == [
        f"Prompt: Number {n} was\nThen: never here & there" for n in range(3)]


def test_texts_longer_than_the_mean_are_left_out_after_the_choice(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "some.jsonl", [{"text": "word " * size} for size in (1, 2, 3, 10)])
    found = texts_of(tmp_path / "data", source=str(source), max_chars="mean")
    assert sorted(len(record["text"]) for record in found) == [4, 9, 14]


def test_a_template_does_not_hide_an_evaluation_prompt(tmp_path: Path) -> None:
    values = make_sources(tmp_path / "data")
    prompts = [json.loads(line) for line in (tmp_path / "data/prompts.jsonl").read_text("utf-8").splitlines()]
    source = write_lines(tmp_path / "rtp.jsonl", [{**record, "continuation": "x y z"} for record in prompts])
    values["data"]["texts"] = {"source": str(source), "label_column": None, "min_chars": 1,
                               "template": "Prompt: {prompt.text}\nContinuation: {continuation}"}
    values["data"]["prompts"] |= {"training_count": 0, "evaluation_count": 20}
    prepare_data(Recipe.model_validate(values), output=tmp_path / "out")
    asked = {record["prompt"]["text"] for record in read_jsonl(tmp_path / "out" / "prompts.jsonl")}
    trained = "".join(record["text"] for record in read_jsonl(tmp_path / "out" / "texts.jsonl"))
    assert len(asked) == 20
    assert not any(prompt in trained for prompt in asked)
    assert list(read_jsonl(tmp_path / "out" / "train_prompts.jsonl")) == []


def test_prompts_are_chosen_by_file_and_value_and_wrapped_as_the_training_text_is(tmp_path: Path) -> None:
    folder = tmp_path / "comments"
    folder.mkdir()
    for part in ("train", "test"):
        lines = [f"{number % 2},{part} comment number {number} of them" for number in range(6)]
        (folder / f"{part}.csv").write_text("\n".join(["label,comment", *lines]), "utf-8")
    texts = write_lines(tmp_path / "texts.jsonl", [
        {"p": f"{part} comment number {n} of them", "c": "and what follows"} for part in ("train", "test")
        for n in range(6)])
    values = make_sources(tmp_path / "data")
    values["data"]["texts"] = {"source": str(texts), "label_column": None, "min_chars": 1,
                               "template": "Prompt: {p}\nContinuation: {c}"}
    values["data"]["prompts"] = {"evaluation_count": 9, "training_count": 0, "sources": [
        {"source": str(folder), "files": "test*", "where": {"label": "1"}, "text_column": "comment",
         "template": "Prompt: {comment}\nContinuation:"}]}
    prepare_data(Recipe.model_validate(values), output=tmp_path / "out")
    asked = {record["prompt"]["text"] for record in read_jsonl(tmp_path / "out" / "prompts.jsonl")}
    assert asked == {f"Prompt: test comment number {n} of them\nContinuation:" for n in (1, 3, 5)}
    trained = {record["text"] for record in read_jsonl(tmp_path / "out" / "texts.jsonl")}
    assert len(trained) == 9
    assert not any(text.startswith(prompt) for prompt in asked for text in trained)


def test_a_choice_of_files_needs_a_folder_that_holds_them(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text\nb", "utf-8")
    for files in ("*.txt", "/a.csv", "../a.csv"):
        with pytest.raises(DetoxError, match=rf"no table named {re.escape(files)}"):
            list(read_table(tmp_path, files))
    with pytest.raises(DetoxError, match="the source is one file"):
        list(read_table(tmp_path / "a.csv", "*.csv"))


def test_the_template_of_a_prompt_holds_its_text() -> None:
    with pytest.raises(ValidationError, match=r"must hold \{text\}"):
        PromptTable(source="x", template="Question: {question}")


def test_requests_become_conversations_with_benign_ones_mixed_in(tmp_path: Path) -> None:
    hate = write_lines(tmp_path / "hate.jsonl", [
        {"hate": f"rude {n}\nline two", "counter": f" no {n} "} for n in range(3)])
    benign = write_lines(tmp_path / "benign.jsonl", [{"q": f"kind {n}", "a": f"yes\n{n}"} for n in range(5)])
    found = texts_of(
        tmp_path / "data", source=str(hate), text_column="hate", answer_column="counter", chat=True,
        benign=[{"source": str(benign), "text_column": "q", "answer_column": "a", "count": 2}])
    assert {tuple(message["content"] for message in record["messages"]) for record in found} == {
        *((f"rude {n}\nline two", f"no {n}") for n in range(3)), ("kind 0", "yes\n0"), ("kind 1", "yes\n1")}
    plain = texts_of(tmp_path / "plain", source=str(hate), text_column="hate", answer_column="counter")
    assert {(record["prompt"], record["completion"]) for record in plain} == {
        (f"rude {n}\nline two", f" no {n}") for n in range(3)}
    with pytest.raises(ValidationError, match="need an answer_column"):
        TextData(source="x", chat=True)


def test_toxic_requests_are_refused_and_the_others_keep_their_answers(tmp_path: Path) -> None:
    def chat(request: str, toxic: bool | None) -> dict[str, Any]:
        return {"id": request, "text": request, "toxic": toxic, "messages": [
            {"role": "user", "content": request}, {"role": "assistant", "content": "an answer"}]}

    records = [chat("you idiot", None), chat("hello", None), chat("labelled", True), chat("idiot, but fine", False),
               chat("unreadable?", None),
               {"id": "p", "text": "you idiot", "toxic": None, "prompt": "you idiot", "completion": " why"}]
    found = Refusals(Fixed(), 0.5, REFUSAL).run(records)
    assert [record["action"] for record in found] == [
        "rewritten", "kept", "rewritten", "kept", "rewritten", "rewritten"]
    assert found[0]["messages"] == [{"role": "user", "content": "you idiot"}, {"role": "assistant", "content": REFUSAL}]
    assert (found[0]["original"], found[0]["text"]) == ("an answer", REFUSAL)
    assert found[1]["messages"] == records[1]["messages"]
    assert found[5]["completion"] == f" {REFUSAL}"
    assert all(record["action"] == "kept" for record in Refusals(Fixed(), 0.5, None).run(records))


def test_detoxify_refuses_instead_of_rewriting_where_the_data_are_conversations(tmp_path: Path) -> None:
    values = make_sources(tmp_path / "data")
    values["detoxify"] = {"refusal": REFUSAL, "toxic_threshold": 0}
    values["scoring"]["training"]["source"] = values["data"]["texts"]["source"]
    messages = [{"role": "user", "content": "you"}, {"role": "assistant", "content": "me"}]
    texts = write_lines(tmp_path / "texts.jsonl", [
        {"id": "1", "text": "you", "toxic": None, "messages": messages},
        {"id": "2", "text": "you", "toxic": False, "messages": messages}])
    detoxify(Recipe.model_validate(values), texts=texts, output=tmp_path / "out")
    found = list(read_jsonl(tmp_path / "out" / "records.jsonl"))
    assert [record["messages"][-1]["content"] for record in found] == [REFUSAL, "me"]


def test_compressed_json_lines_are_read(tmp_path: Path) -> None:
    from llm_detox.data.sources import read_table

    with gzip.open(tmp_path / "some.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write('{"text": "one"}\n{"text": "two"}\n')
    assert [record["text"] for record in read_table(tmp_path)] == ["one", "two"]
