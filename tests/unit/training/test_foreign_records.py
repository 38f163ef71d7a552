"""Records of another kind: whoever reads them says which record it is, and nothing is taken for text that is none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llm_detox.data.records import read_generations, read_jsonl, read_texts
from llm_detox.errors import DetoxError
from llm_detox.evaluation.report_content import continuation_samples, rewrite_samples
from llm_detox.evaluation.stop_hate import _trained_request
from llm_detox.evaluation.verdicts import judge_conversations
from llm_detox.generation.generators import StoredContinuations, record_offsets
from llm_detox.recipe.evaluation import SamplingSection
from llm_detox.rephrase.detoxify import read_records
from llm_detox.rephrase.paraphrase_pairs import read_pairs
from llm_detox.training.encoding import clean_texts, training_texts
from llm_detox.training.pairs import prompt_texts, rewrite_pairs
from llm_detox.training.rewriters import read_classes
from tests.helpers.sources import write_lines
from tests.helpers.training import small_recipe

REWRITTEN = {"id": "1", "action": "rewritten", "text": "you are kind", "original": "you are dumb",
             "scores": {"toxicity_before": 0.9, "toxicity_after": 0.1}}
CONTINUED = {"id": "1", "prompt": {"text": "You are"}, "generations": [{"text": " kind", "toxicity": 0.1}]}
CHAT = [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Hello."}]


def rewrites(path: Path) -> object:
    return rewrite_pairs(read_jsonl(path), 9, place=str(path))


def trained(path: Path) -> object:
    return [_trained_request(record, f"{path}, record {number}") for number, record in enumerate(read_jsonl(path), 1)]


def stored(path: Path) -> object:
    return list(StoredContinuations([path], "stored").continuations(
        ["You are"], k=1, sampling=SamplingSection(), seed=1, keys=["1"]))


def samples(path: Path) -> object:
    return continuation_samples({"base": path}, "toxicity", 5)


FOREIGN: list[tuple[Callable[[Path], object], dict[str, Any], str]] = [
    (rewrites, {"text": "a comment", "toxic": True}, "the field 'action' is missing"),
    (rewrites, {key: value for key, value in REWRITTEN.items() if key != "original"}, "'original' is missing"),
    (rewrites, {**REWRITTEN, "original": None}, "'original' is null"),
    (rewrites, {**REWRITTEN, "text": 5}, r"'text' is a number \(5\)"),
    (training_texts, {"text": 5}, "'text' is a number"),
    (training_texts, {"original": "a comment"}, "neither `text`, nor `prompt` and `completion`, nor `messages`"),
    (clean_texts, {"text": ["a", "b"]}, "'text' is a list"),
    (read_texts, {"passage": "a"}, "'text' is missing"),
    (prompt_texts, {"prompt": 5}, "'prompt' is a number"),
    (prompt_texts, {"prompt": {"text": None}}, "'text' is null"),
    (read_classes, {"text": "a", "toxic": "false"}, "'toxic' is a text"),
    (read_classes, {"text": "a", "toxic": None}, "the text has no label"),
    (read_classes, {"text": None, "toxic": True}, "'text' is null"),
    (read_pairs, {"toxic": "you fool", "neutral": None}, "'neutral' is null"),
    (read_pairs, {"toxic": "you fool"}, "'neutral' is missing"),
    (read_records, {"text": 5}, "'text' is a number"),
    (read_records, {"text": "a", "messages": None}, "not a conversation: no messages"),
    (read_records, {"text": "a", "messages": CHAT, "toxic": "no"}, "'toxic' is a text"),
    (read_records, {"text": "a", "prompt": "a", "completion": 5}, "'completion' is a number"),
    (trained, {"messages": [{"role": "assistant"}]}, "not a conversation"),
    (trained, {"prompt": 5}, "'prompt' is a number"),
    (stored, {**CONTINUED, "generations": [{"text": 5}]}, "not a record with generations"),
    (stored, {**CONTINUED, "generations": [{"text": " kind"}, {"toxicity": 0.1}]}, "not a record with generations"),
    (stored, {**CONTINUED, "generations": {}}, "not a record with generations"),
    (samples, {**CONTINUED, "generations": [{"text": 5}]}, "not a record with continuations"),
    (samples, {**CONTINUED, "prompt": "You are"}, "not a record with continuations: a prompt without text"),
    (lambda path: list(read_generations(path)), {**CONTINUED, "generations": []}, "no generations"),
]


@pytest.mark.parametrize(("read", "record", "message"), FOREIGN)
def test_a_record_of_another_kind_is_named_with_its_place(
    tmp_path: Path, read: Callable[[Path], object], record: dict[str, Any], message: str
) -> None:
    path = write_lines(tmp_path / "records.jsonl", [record])
    with pytest.raises(DetoxError, match=message) as caught:
        read(path)
    assert str(caught.value.place) in (f"{path}, record 1", f"{path}, line 1")
    assert caught.value.remedy


def test_scores_of_another_kind_leave_a_rewrite_without_a_margin(tmp_path: Path) -> None:
    pairs = rewrite_pairs([{**REWRITTEN, "scores": [0.9, 0.1]}], 9)
    assert [(pair.prompt, pair.chosen, pair.margin) for pair in pairs] == [("you are", " kind", 0.0)]
    assert rewrite_samples(write_lines(tmp_path / "r.jsonl", [{**REWRITTEN, "scores": [0.9]}]), 5)[0] == []


@pytest.mark.parametrize(("empty", "text"), [(None, "a day"), ("", "a day"), ("  ", "a day")])
def test_empty_texts_and_prompts_are_left_out_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], empty: str | None, text: str
) -> None:
    path = write_lines(tmp_path / "texts.jsonl", [{"text": empty}, {"text": text}])
    assert clean_texts(path) == read_texts(path) == [text]
    assert capsys.readouterr().err.count("1 of 2 texts are empty and left out") == 2
    assert training_texts(path)[1].empty == 1
    if empty is not None:
        prompts = write_lines(tmp_path / "prompts.jsonl", [{"prompt": empty}, {"prompt": {"text": text}}])
        assert prompt_texts(prompts) == [text]
        assert "1 of 2 prompts are empty and left out" in capsys.readouterr().err


def test_a_missing_continuation_stays_one(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "generations.jsonl", [{**CONTINUED, "generations": [{"text": None}]}])
    assert stored(path) == [(0, [None])]
    assert [identity for identity, _ in record_offsets(path)] == ["1"]


def test_labels_that_are_all_null_are_not_taken_for_none(tmp_path: Path, tiny_llama: Path) -> None:
    path = write_lines(tmp_path / "chats.jsonl", [{"messages": CHAT, "label": None}])
    with pytest.raises(DetoxError, match="the label None is neither safe nor unsafe"):
        judge_conversations(small_recipe(tmp_path / "sources", tiny_llama), conversations=path, model=str(tiny_llama),
                            output=tmp_path / "out")


def test_a_table_of_pairs_that_is_not_utf_8_is_named(tmp_path: Path) -> None:
    (tmp_path / "pairs.tsv").write_bytes("rude\tpolite\nyou fööl\tyou\n".encode("latin-1"))
    with pytest.raises(DetoxError, match="not UTF-8"):
        read_pairs(tmp_path / "pairs.tsv")


def test_nesting_without_end_is_no_record(tmp_path: Path) -> None:
    path = tmp_path / "generations.jsonl"
    path.write_text('{"id": "1", "generations": ' + "[" * 100_000 + "\n", "utf-8")
    with pytest.raises(DetoxError, match="not a record with generations"):
        list(record_offsets(path))
