"""The data step: clean, apart, balanced, the same on every machine."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from llm_detox.data.prepare import budget_scale, prepare_data
from llm_detox.data.records import clean_text, read_jsonl, same_text_key
from llm_detox.data.sources import fetch
from llm_detox.errors import DetoxError
from llm_detox.recipe import Recipe
from llm_detox.recipe.data import BudgetSection
from llm_detox.scoring.ngram import read_labelled
from tests.helpers.sources import make_sources, write_lines


def prepared(folder: Path, **changes: Any) -> dict[str, list[dict[str, Any]]]:
    values = make_sources(folder)
    values.update(changes)
    prepare_data(Recipe.model_validate(values), output=folder / "out")
    return {path.stem: list(read_jsonl(path)) for path in (folder / "out").glob("*.jsonl")}


def test_the_sizes_and_the_balance_are_those_of_the_recipe(tmp_path: Path) -> None:
    data = prepared(tmp_path)
    assert {name: len(records) for name, records in data.items()} == {
        "texts": 20, "held_out": 0, "prompts": 8, "train_prompts": 10, "clean": 6, "clean_train": 5}
    assert sum(record["toxic"] for record in data["texts"]) == 10


def test_no_prompt_and_no_passage_stands_on_both_sides(tmp_path: Path) -> None:
    data = prepared(tmp_path)
    for one, other, text in (
        ("prompts", "train_prompts", lambda record: record["prompt"]["text"]),
        ("clean", "clean_train", lambda record: record["text"]),
    ):
        assert not {same_text_key(text(r)) for r in data[one]} & {same_text_key(text(r)) for r in data[other]}


def test_harmless_texts_are_held_out_of_training_however_many_are_wanted_of_each(tmp_path: Path) -> None:
    held_out = {}
    for wanted, count in ((3, 20), (3, 300), (300, 300)):
        folder = tmp_path / f"{wanted}-{count}"
        table = make_sources(folder, comments=300)["data"]
        table["texts"] |= {"held_out_count": wanted, "count": count}
        data = prepared(folder, data=table)
        assert not {record["id"] for record in data["texts"]} & {record["id"] for record in data["held_out"]}
        assert not any(record["toxic"] for record in data["held_out"])
        held_out[wanted, count] = [record["text"] for record in data["held_out"]]
    assert len(held_out[3, 20]) == 3
    assert held_out[3, 20] == held_out[3, 300] == held_out[300, 300][:3]
    harmless = sum(not record["toxic"] for record in data["texts"]) + len(data["held_out"])
    assert 0.1 < len(data["held_out"]) / harmless < 0.3


def test_texts_that_differ_only_in_case_and_punctuation_count_once(tmp_path: Path) -> None:
    values = make_sources(tmp_path)
    values["data"]["texts"].update(count=60, toxic_share=0.0)
    prepare_data(Recipe.model_validate(values), output=tmp_path / "out")
    keys = [same_text_key(record["text"]) for record in read_jsonl(tmp_path / "out/texts.jsonl")]
    assert len(keys) == len(set(keys)) == 40


def test_a_comment_that_holds_an_evaluation_prompt_is_left_out(tmp_path: Path) -> None:
    data = prepared(tmp_path / "first")
    prompt = data["prompts"][0]["prompt"]["text"]
    values = make_sources(tmp_path / "second")
    with Path(values["data"]["texts"]["source"]).open("a", encoding="utf-8") as file:
        file.write(f'1,"{prompt} go on and on"\n')
    values["data"]["texts"].update(count=60, toxic_share=1.0)
    prepare_data(Recipe.model_validate(values), output=tmp_path / "out")
    assert not any(record["text"].startswith(prompt) for record in read_jsonl(tmp_path / "out/texts.jsonl"))


def test_toxic_prompts_come_first_and_keep_their_scores(tmp_path: Path) -> None:
    scores = [record["prompt"].get("toxicity", 0) for record in prepared(tmp_path)["prompts"]]
    assert scores == sorted(scores, key=lambda score: score < 0.5)
    assert scores[0] == 0.9


def test_the_same_recipe_gives_the_same_files_whatever_the_order_of_the_source(tmp_path: Path) -> None:
    first = prepared(tmp_path / "one")
    values = make_sources(tmp_path / "two")
    source = Path(values["data"]["texts"]["source"])
    header, *rows = source.read_text("utf-8").splitlines()
    source.write_text("\n".join([header, *reversed(rows)]) + "\n", "utf-8")
    prepare_data(Recipe.model_validate(values), output=tmp_path / "two/out")
    again = list(read_jsonl(tmp_path / "two/out/texts.jsonl"))
    assert [same_text_key(record["text"]) for record in first["texts"]] == [
        same_text_key(record["text"]) for record in again]


def test_an_empty_data_set_is_one_clear_error_and_leaves_nothing(tmp_path: Path) -> None:
    values = make_sources(tmp_path)
    Path(values["data"]["texts"]["source"]).write_text("is_offensive,text\n", "utf-8")
    with pytest.raises(DetoxError, match="none of 0 records can be used"):
        prepare_data(Recipe.model_validate(values), output=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / ".out.part").exists()


@pytest.mark.parametrize("column", ["text_column", "label_column"])
def test_a_missing_column_is_named_with_the_columns_that_are_there(tmp_path: Path, column: str) -> None:
    values = make_sources(tmp_path)
    values["data"]["texts"][column] = "body"
    with pytest.raises(DetoxError, match=r"'body' is missing[\s\S]*is_offensive, text"):
        prepare_data(Recipe.model_validate(values), output=tmp_path / "out")


def test_a_label_that_is_neither_is_named(tmp_path: Path) -> None:
    values = make_sources(tmp_path)
    with Path(values["data"]["texts"]["source"]).open("a", encoding="utf-8") as file:
        file.write("maybe,a comment that is long enough to be used\n")
    with pytest.raises(DetoxError, match=r"record 62: the label 'maybe'"):
        prepare_data(Recipe.model_validate(values), output=tmp_path / "out")


def save_comments(folder: Path, rows: list[tuple[object, str]]) -> dict[str, Any]:
    """Forty labelled comments, and these; returns the recipe's values."""
    values = make_sources(folder)
    plain = [(number % 2, f"this is comment number {number} of some length") for number in range(40)]
    write_lines(folder / "comments.jsonl", [{"label": label, "text": text} for label, text in plain + rows])
    values["data"]["texts"].update(source=str(folder / "comments.jsonl"), label_column="label", count=60)
    return values


def save_shared_source(folder: Path, scorer: dict[str, Any]) -> tuple[dict[str, Any], Path]:
    """Labelled comments with links and marks that cleaning takes away, for texts and a scorer; the recipe's values."""
    values = make_sources(folder)
    path = folder / "shared.csv"
    rows = [(number % 2, f'<b>"Comment {number} is here</b>, http://a.b/{number}!"') for number in range(200)]
    with path.open("w", encoding="utf-8", newline="") as file:
        rows += [(0, "comment 7 is here"), (1, "Comment 7 is here")]
        csv.writer(file).writerows([("is_offensive", "text"), *rows])
    values["data"]["texts"].update(source=str(path), count=200)
    values["scoring"]["training"] = {"kind": "ngram", "source": str(path)} | scorer
    return values, path


def test_no_text_of_a_recipe_has_taught_its_scorer(tmp_path: Path) -> None:
    values, path = save_shared_source(tmp_path, {})
    prepare_data(Recipe.model_validate(values), output=tmp_path / "out")
    trained = {same_text_key(record["text"]) for record in read_jsonl(tmp_path / "out/texts.jsonl")}
    learnt = {same_text_key(clean_text(text)) for text in read_labelled(path)[0]}
    assert 20 < len(trained) < 60
    assert len(learnt) == 199 - len(trained), "and what is no recipe's the scorer learns; one text has both labels"
    assert not trained & learnt


def test_what_another_scorer_of_the_report_learns_is_left_to_it_too(tmp_path: Path) -> None:
    values, path = save_shared_source(tmp_path, {"source": str(tmp_path / "comments.csv")})
    values["scoring"]["others"] = [{"kind": "ngram", "source": str(path)}]
    prepare_data(Recipe.model_validate(values), output=tmp_path / "out")
    assert 20 < len(list(read_jsonl(tmp_path / "out/texts.jsonl"))) < 60


def test_a_scorer_inside_another_counts_as_well(tmp_path: Path) -> None:
    values, path = save_shared_source(tmp_path, {"kind": "attributes", "source": str(tmp_path / "scorer")})
    (tmp_path / "scorer").mkdir()
    save_file({"weights": np.zeros(1)}, tmp_path / "scorer/scorer.safetensors", metadata={"contains": str(path)})
    prepare_data(Recipe.model_validate(values), output=tmp_path / "out")
    assert len(list(read_jsonl(tmp_path / "out/texts.jsonl"))) < 60


def test_texts_that_no_scorer_learns_from_are_all_a_recipes(tmp_path: Path) -> None:
    values, _ = save_shared_source(tmp_path, {"source": str(tmp_path / "comments.csv")})
    values["data"]["texts"]["toxic_share"] = 0.5
    prepare_data(Recipe.model_validate(values), output=tmp_path / "out")
    assert len(list(read_jsonl(tmp_path / "out/texts.jsonl"))) == 199


@pytest.mark.parametrize("empty", ["", "  ", None, math.nan])
def test_a_text_without_a_label_is_counted_and_is_not_taken_for_clean(tmp_path: Path, empty: object) -> None:
    values = save_comments(tmp_path, [(empty, "nobody has read this comment so far")])
    result = prepare_data(Recipe.model_validate(values), output=tmp_path / "out")
    texts = [record["text"] for record in read_jsonl(tmp_path / "out/texts.jsonl")]
    assert len(texts) == 40
    assert "nobody has read this comment so far" not in texts
    assert (result.unlabelled, result.contradictory) == (1, 0)


def test_a_text_with_both_labels_is_counted_and_left_out_whichever_comes_first(tmp_path: Path) -> None:
    for number, label in enumerate((0, 1)):
        values = save_comments(tmp_path / str(number), [
            (label, "some say this is rude, some do not"), (1 - label, "Some say this is rude; some do not!"),
            (label, "some say this is rude, some do not"), (1, "this is comment number 1 of some length")])
        output = tmp_path / str(number) / "out"
        result = prepare_data(Recipe.model_validate(values), output=output)
        texts = [record["text"] for record in read_jsonl(output / "texts.jsonl")]
        assert len(texts) == 40
        assert not any("some say" in text.lower() for text in texts)
        assert (result.unlabelled, result.contradictory) == (0, 1)


@pytest.mark.parametrize("rows", [
    [("", f"the unlabelled comment with the number {number}") for number in range(3)],
    [(label, f"the doubtful comment with the number {number}") for number in range(3) for label in (0, 1)]])
def test_labels_of_which_too_many_say_nothing_are_refused(tmp_path: Path, rows: list[tuple[object, str]]) -> None:
    values = save_comments(tmp_path, rows)
    with pytest.raises(DetoxError, match=r"labels cannot be trusted: \d texts have no label and \d have both"):
        prepare_data(Recipe.model_validate(values), output=tmp_path / "out")


def test_prompts_that_are_too_short_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = make_sources(tmp_path)
    (tmp_path / "more.txt").write_text("So\n\n??\nThese people are all the same\n", "utf-8")
    prepare_data(Recipe.model_validate(values), output=tmp_path / "out")
    assert "3 prompts have less than 3 letters and are left out" in capsys.readouterr().err


def test_scores_of_prompts_may_be_whole_numbers(tmp_path: Path) -> None:
    values = make_sources(tmp_path)
    write_lines(tmp_path / "whole.jsonl", [
        {"id": 1, "prompt": {"text": f"number {number} is what they all", "toxicity": number % 2, "begin": 1}}
        for number in range(8)])
    values["data"]["prompts"].update(sources=[{"source": str(tmp_path / "whole.jsonl"), "text_column": "prompt.text"}],
                                     training_count=0)
    prepare_data(Recipe.model_validate(values), output=tmp_path / "out")
    prompts = [record["prompt"] for record in read_jsonl(tmp_path / "out/prompts.jsonl")]
    assert [prompt["toxicity"] for prompt in prompts] == [1.0] * 4 + [0.0] * 4
    assert all(set(prompt) == {"text", "toxicity"} for prompt in prompts)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("package://no-such-package/file.csv", "is not installed"),
        ("package://pydantic/none.csv", "holds no 'none.csv'"),
        ("./no/such/file.csv", "no such file"),
    ],
)
def test_a_source_that_is_not_there_is_one_clear_error(source: str, message: str) -> None:
    with pytest.raises(DetoxError, match=message):
        fetch(source, kind="dataset")


def test_a_file_inside_a_package_is_found() -> None:
    assert fetch("package://pydantic/pydantic/main.py", kind="dataset").name == "main.py"


def test_the_budget_scales_benign_conversations_too(tmp_path: Path) -> None:
    values = make_sources(tmp_path / "data")
    for kind in ("asked", "benign"):
        (tmp_path / f"{kind}.jsonl").write_text(
            "".join(json.dumps({"q": f"{kind} number {n}", "a": "yes"}) + "\n" for n in range(9)), "utf-8")
    columns = {"text_column": "q", "answer_column": "a"}
    values["budget"] = {"scale": 0.5}
    values["data"]["texts"] = {
        "source": str(tmp_path / "asked.jsonl"), "label_column": None, "min_chars": 1, "count": 2, **columns,
        "benign": [{"source": str(tmp_path / "benign.jsonl"), "count": 6, **columns}]}
    prepare_data(Recipe.model_validate(values), output=tmp_path / "out")
    texts = (tmp_path / "out" / "texts.jsonl").read_text("utf-8")
    assert (texts.count('"text": "benign'), texts.count('"text": "asked')) == (3, 1)


def test_a_hub_source_may_name_its_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download",
                        lambda name, **how: asked.append((name, how["revision"])) or str(tmp_path))
    fetch("owner/name@refs/pr/1", kind="model")
    fetch("owner/name", kind="dataset")
    assert asked == [("owner/name", "refs/pr/1"), ("owner/name", None)]


def test_a_fixed_budget_is_taken_as_it_is_and_a_measured_one_stays_in_bounds() -> None:
    assert budget_scale(BudgetSection(scale=0.3)) == 0.3
    assert budget_scale(BudgetSection(reference_gflops=1e9, smallest_scale=0.25)) == 0.25
    assert budget_scale(BudgetSection(reference_gflops=1e-9)) == 1.0
