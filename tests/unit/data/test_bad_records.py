"""Bad records are an error, or are left out up to a number, counted and listed with their places."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from llm_detox.cli import app
from llm_detox.data import records
from llm_detox.data.bad_records import BadRecords
from llm_detox.data.prepare import DataResult, prepare_data
from llm_detox.data.records import read_jsonl
from llm_detox.data.sources import read_table
from llm_detox.errors import DetoxError
from llm_detox.recipe import Recipe
from tests.helpers.sources import make_sources

BAD_LINES = {b'{"text": "cut': "not valid JSON", b"\xff\xfe": "not UTF-8", b"[1]": "a JSON object is needed",
             b'{"text": "\\ud800"}': "half of a surrogate pair", b"[" * 3000: "too deep", b'{"n": 1%s}' % (b"0" * 5000):
             "too many digits"}


def damaged(folder: Path) -> dict[str, Any]:
    """Sources with seven bad records, one of which two readers meet; returns the recipe's values."""
    values = make_sources(folder)
    comments = folder / "comments.csv"
    lines = comments.read_text("utf-8").splitlines()
    lines[5] = "1,one field,too many"
    lines[9] = "perhaps,comment number 9 has a label that is neither of the two"
    comments.write_text("\n".join(lines) + "\n", "utf-8")
    prompts = folder / "prompts.jsonl"
    content = prompts.read_bytes().splitlines()
    content[3:3] = [b'{"prompt": ', b"\xff\xff", b'{"prompt": {"text": 5}}', b'{"other": "column"}']
    prompts.write_bytes(b"\n".join(content) + b"\n")
    with (folder / "clean.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"passage": null}\n')
    values["data"]["prompts"]["sources"].append(values["data"]["prompts"]["sources"][0])
    return values


def prepared(values: dict[str, Any], output: Path, allowed: int) -> DataResult:
    data = {**values["data"], "skip_bad_records": allowed}
    return prepare_data(Recipe.model_validate({**values, "data": data}), output=output)


def test_bad_records_are_left_out_counted_and_listed_with_their_places(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = damaged(tmp_path)
    result = prepared(values, tmp_path / "out", 7)
    assert result.skipped == 7
    listed = {one["place"].rpartition("/")[2]: one["reason"] for one in read_jsonl(tmp_path / "out/skipped.jsonl")}
    assert {place: reason.partition(":")[0] for place, reason in listed.items()} == {
        "prompts.jsonl, line 4": "not valid JSON", "prompts.jsonl, line 5": "not UTF-8 (byte 1 of the line)",
        "prompts.jsonl, record 6": "the column 'prompt.text' holds no text but 5",
        "prompts.jsonl, record 7": "the column 'prompt.text' is missing",
        "comments.csv, line 6": "the row does not have the header's 2 columns",
        "comments.csv, record 9": "the label 'perhaps' is neither toxic nor clean",
        "clean.jsonl, record 41": "the column 'passage' holds no text but None"}
    assert "7 bad records are left out (skipped.jsonl lists them)" in capsys.readouterr().err


def test_what_is_left_is_what_the_good_records_alone_give(tmp_path: Path) -> None:
    prepared(damaged(tmp_path / "damaged"), tmp_path / "one", 7)
    values = make_sources(tmp_path / "good")
    comments = tmp_path / "good/comments.csv"
    lines = comments.read_text("utf-8").splitlines()
    comments.write_text("\n".join(line for number, line in enumerate(lines) if number not in (5, 9)) + "\n", "utf-8")
    prepared(values, tmp_path / "other", 0)
    for name in ("texts", "prompts", "train_prompts", "clean", "clean_train"):
        assert (tmp_path / f"one/{name}.jsonl").read_bytes() == (tmp_path / f"other/{name}.jsonl").read_bytes()
    assert not (tmp_path / "other/skipped.jsonl").exists()


@pytest.mark.parametrize(("allowed", "message"), [
    (0, "line 4: not valid JSON"), (6, r"record 41: the column 'passage' holds no text but None; 6 bad records were")])
def test_one_bad_record_too_many_is_an_error_and_leaves_nothing(tmp_path: Path, allowed: int, message: str) -> None:
    with pytest.raises(DetoxError, match=message) as caught:
        prepared(damaged(tmp_path), tmp_path / "out", allowed)
    assert ("data.skip_bad_records" in str(caught.value.remedy)) == bool(allowed)
    assert not (tmp_path / "out").exists()


def test_the_number_is_an_option_of_the_command(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(json.dumps(damaged(tmp_path)), "utf-8")
    arguments = ["data", "--recipe", str(tmp_path / "recipe.yaml"), "--output", str(tmp_path / "out"), "--json"]
    assert CliRunner().invoke(app, arguments).exit_code == 1
    run = CliRunner().invoke(app, [*arguments, "--skip-bad-records", "7"])
    assert run.exit_code == 0, run.output
    assert json.loads(run.stdout)["skipped"] == 7


@pytest.mark.parametrize("line", BAD_LINES, ids=lambda line: str(BAD_LINES[line]))
def test_every_kind_of_bad_line_may_be_left_out(tmp_path: Path, line: bytes) -> None:
    (path := tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\n' + line + b'\n{"text": "b"}\n')
    bad = BadRecords(1)
    assert [record["text"] for record in read_table(path, bad=bad)] == ["a", "b"]
    [listed] = bad.listed()
    assert listed["place"] == f"{path}, line 2"
    assert BAD_LINES[line] in listed["reason"]
    with pytest.raises(DetoxError, match=BAD_LINES[line]):
        list(read_table(path))


def test_what_damages_a_whole_file_is_an_error_all_the_same(tmp_path: Path) -> None:
    (path := tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}\n' * 1000)[:40])
    with pytest.raises(DetoxError, match="damaged or cut"):
        list(read_table(path, bad=BadRecords(10)))


def test_lines_behind_one_that_is_left_out_keep_their_numbers(tmp_path: Path) -> None:
    (path := tmp_path / "a.csv").write_bytes(b"a,b\n1,2\n\xff,3\n4\n5,6\n7\n")
    bad = BadRecords(3)
    assert [record["a"] for record in read_table(path, bad=bad)] == ["1", "5"]
    assert [one["place"].rpartition(", ")[2] for one in bad.listed()] == ["line 3", "line 4", "line 6"]


def test_a_header_that_cannot_be_read_is_no_bad_record(tmp_path: Path) -> None:
    (path := tmp_path / "a.csv").write_bytes(b"\xff,b\n1,2\n3,4\n")
    with pytest.raises(DetoxError, match="line 1: the header cannot be read"):
        list(read_table(path, bad=BadRecords(3)))


def test_a_small_file_that_unpacks_to_a_huge_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "_LARGEST_UNPACKED", 2**20)
    line = b'{"text": "the same again"}\n'
    (bomb := tmp_path / "bomb.jsonl.gz").write_bytes(gzip.compress(line * 2**17))
    seen: list[int] = []
    with pytest.raises(DetoxError, match="unpacks to more than 200 times its size") as caught:
        seen.extend(len(record) for record in read_table(bomb))
    assert 0 < len(seen) < 2**17
    assert caught.value.remedy
    (small := tmp_path / "small.jsonl.gz").write_bytes(gzip.compress(line * 1000))
    assert len(list(read_table(small))) == 1000
