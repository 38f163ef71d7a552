"""Records and tables: bad lines are named; torn files are continued; splits never move a record."""

from __future__ import annotations

import gzip
import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_detox.data.records import (
    JsonlAppender,
    clean_text,
    cut_at_word,
    hash_fraction,
    read_jsonl,
    same_text_key,
    write_jsonl,
)
from llm_detox.data.sources import column, read_table
from llm_detox.errors import DetoxError
from tests.helpers.damage import WEB_PAGE

json_texts = st.text(st.characters(exclude_categories=["Cs"]))


def write_lines(path: Path, bad: bytes) -> Path:
    good = [json.dumps({"id": str(number), "text": "a"}).encode() for number in range(10)]
    good[6] = bad
    path.write_bytes(b"\n".join(good) + b"\n")
    return path


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (b'{"text": "a"', "not valid JSON"),
        (b'{"text": "caf\xe9"}', "not UTF-8"),
        (b'["text"]', "a JSON object is needed"),
        (b'{"text": "a", "n": ' + b"9" * 5000 + b"}", "too many digits"),
        (b'{"text": ' + b"[" * 100_000, "lie too deep"),
        (b'{"text": "a \\ud800 b"}', "half of a surrogate pair"),
        (b'{"txt": "a"}', "'text' is missing"),
    ],
)
def test_a_bad_line_is_named_with_file_and_number(tmp_path: Path, bad: bytes, message: str) -> None:
    path = write_lines(tmp_path / "texts.jsonl", bad)
    with pytest.raises(DetoxError, match=rf"texts\.jsonl, line 7: .*{message}"):
        list(read_jsonl(path, required=["text"]))


def test_a_missing_file_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(DetoxError, match="No such file"):
        list(read_jsonl(tmp_path / "none.jsonl"))


@given(st.lists(json_texts, max_size=8))
def test_records_read_back_as_written(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    path = tmp_path_factory.mktemp("records") / "r.jsonl"
    write_jsonl(path, ({"text": text} for text in texts))
    assert [record["text"] for record in read_jsonl(path)] == texts


@given(st.lists(json_texts, min_size=1, max_size=6), st.integers(min_value=0, max_value=400))
def test_an_interrupted_file_goes_on_behind_its_last_whole_record(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], cut: int
) -> None:
    path = tmp_path_factory.mktemp("torn") / "r.jsonl"
    write_jsonl(path, ({"text": text} for text in texts))
    whole = path.read_bytes()
    path.write_bytes(whole[: min(cut, len(whole))])
    with JsonlAppender(path) as appender:
        done = len(appender.existing)
        for text in texts[done:]:
            appender.write({"text": text})
    assert path.read_bytes() == whole


def test_csv_with_a_missing_column_lists_those_that_are_there(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("label,comment\n1,hello\n", "utf-8")
    record = next(read_table(path))
    with pytest.raises(DetoxError, match=r"'text' is missing[\s\S]*label, comment"):
        column(record, "text", str(path))


def test_a_csv_row_of_the_wrong_length_is_named(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("label,text\n1,hello\n0,a,b\n", "utf-8")
    with pytest.raises(DetoxError, match=r"t\.csv, line 3"):
        list(read_table(path))


def test_nested_columns_are_reached_with_dots() -> None:
    assert column({"prompt": {"text": "x"}}, "prompt.text", "here") == "x"


def test_tsv_is_read_without_quoting(tmp_path: Path) -> None:
    path = tmp_path / "t.tsv"
    path.write_text('text\n"half quoted\n', "utf-8")
    assert [record["text"] for record in read_table(path)] == ['"half quoted']


def test_quotes_around_a_whole_field_between_tabs_are_left_out_and_counted(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "t.tsv"
    path.write_text('\ufeff"text"\t"label"\n"he said ""no"""\t1\n"half\t0\n', "utf-8")
    assert list(read_table(path)) == [{"text": 'he said "no"', "label": "1"}, {"text": '"half', "label": "0"}]
    assert "the quotes around 3 fields are left out" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.tsv", "a.parquet"])
def test_a_web_page_in_place_of_a_table_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(WEB_PAGE)
    with pytest.raises(DetoxError, match="a web page lies in the file's place"):
        list(read_table(tmp_path / name))


def test_a_folder_without_tables_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DetoxError, match="holds no table"):
        list(read_table(tmp_path))


def test_cleaning_removes_links_mentions_and_markup() -> None:
    assert clean_text("RT @you: see https://x.y/z  &amp; ''this''\n<b>now</b>") == "see & this now"


def test_a_compressed_file_is_known_by_its_content_and_refused_where_it_is_damaged(tmp_path: Path) -> None:
    lines = b"".join(json.dumps({"text": f"{number} {hash_fraction(str(number), 'x')}"}).encode() + b"\n"
                     for number in range(2000))
    packed = gzip.compress(lines)
    path = tmp_path / "texts.jsonl"
    for content in (lines, packed):
        for name in ("texts.jsonl", "texts.jsonl.gz"):
            (tmp_path / name).write_bytes(content)
            assert len(list(read_jsonl(tmp_path / name))) == 2000
    for damaged in (packed[:-2000], packed[:2000] + b"\xff" * 50 + packed[2050:], packed[:-8] + b"\0" * 8):
        path.write_bytes(damaged)
        with pytest.raises(DetoxError, match="damaged or cut") as caught:
            list(read_jsonl(path))
        assert "behind line" in str(caught.value.place)


def test_a_byte_order_mark_is_no_text_and_a_whole_pair_is_a_character(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a"}\n{"text": "\\ud83d\\ude00"}\n')
    assert [record["text"] for record in read_jsonl(path)] == ["a", "😀"]


def test_a_line_without_an_end_is_refused_before_it_fills_the_memory(tmp_path: Path,
                                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_detox.data.records._LONGEST_LINE", 100)
    path = tmp_path / "texts.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "a"}\n{"text": "' + b"a" * 1000))
    with pytest.raises(DetoxError, match="the line has more than") as caught:
        list(read_jsonl(path))
    assert str(caught.value.place).endswith("line 2")


def test_a_column_may_have_a_dot_in_its_name() -> None:
    assert column({"prompt.text": "a", "prompt": {"text": "b"}}, "prompt.text", "x") == "a"
    assert column({"prompt": {"text": "b"}}, "prompt.text", "x") == "b"


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_two_columns_of_one_name_are_refused(tmp_path: Path, suffix: str) -> None:
    mark = "," if suffix == ".csv" else "\t"
    path = tmp_path / f"table{suffix}"
    path.write_text(f"text{mark}label{mark}text\na{mark}1{mark}b\n", "utf-8")
    with pytest.raises(DetoxError, match="two columns are called 'text'"):
        list(read_table(path))


def test_what_an_operating_system_leaves_in_a_folder_is_no_table(tmp_path: Path) -> None:
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / ".cache").mkdir()
    for name in ("a.jsonl", "._a.jsonl", ".cache/b.jsonl"):
        (tmp_path / name).write_text('{"text": "a"}\n', "utf-8")
    assert len(list(read_table(tmp_path))) == 1


@pytest.mark.parametrize("cut", [4, 50, 200])
def test_a_damaged_parquet_file_is_refused(tmp_path: Path, cut: int) -> None:
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "table.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a fine day"] * 50}), path)
    data = path.read_bytes()
    path.write_bytes(data[:cut] + b"\xff" * 40 + data[cut + 40:])
    with pytest.raises(DetoxError, match="not a whole Parquet file"):
        list(read_table(path))


@pytest.mark.parametrize(("text", "cleaned"), [
    ("a < b and c > d", "a < b and c > d"), ("I <3 you -> always", "I <3 you -> always"),
    ("<sighs> fine", "<sighs> fine"), ('<ref name="a" />one', "one"),
    ("one<br/>two< /ref ><!-- hidden --> three", "one two three"), ('<span style="x">red</span> ink', "red ink"),
    ("&lt;b&gt;bold&lt;/b&gt;", "bold"), ("<bold> and <Paris>", "<bold> and <Paris>")])
def test_tags_are_removed_by_their_names_and_what_looks_like_them_stays(text: str, cleaned: str) -> None:
    assert clean_text(text) == cleaned


def test_what_could_become_a_tag_is_read_in_time() -> None:
    started = time.process_time()
    for text in ("<b " + "=" * 50_000, "<" * 50_000, "<!--" * 20_000, "< " * 20_000 + "b" * 20_000):
        clean_text(text)
    assert time.process_time() - started < 5


def test_old_line_ends_end_lines(tmp_path: Path) -> None:
    path = tmp_path / "old.txt"
    path.write_bytes(b"one\rtwo\rthree\n")
    assert [record["text"].strip() for record in read_table(path)] == ["one", "two", "three"]
    path.write_bytes(b"one\r\ntwo\r\n")
    assert [record["text"].strip() for record in read_table(path)] == ["one", "two"]


@pytest.mark.parametrize(("one", "other"), [
    ("कि", "की"), ("मैं हूँ", "मैं हू"), ("కల", "కాల"), ("น้ำ", "นำ"), ("كَتَبَ", "كُتِبَ")])
def test_texts_that_differ_in_vowel_signs_are_not_the_same(one: str, other: str) -> None:
    assert same_text_key(one) != same_text_key(other)


@pytest.mark.parametrize(("one", "other"), [
    ("cafe\u0301", "caf\u00e9"), ("Hello, world!", "hello   world"), ("❤️ fine", "fine"), ("a\ufe0fb", "a b"),
    ("_under_score_", "under score"), ("ＦＵＬＬ", "full"), ("नमस्ते, दुनिया!", "नमस्ते दुनिया")])
def test_texts_that_differ_in_form_alone_are_the_same(one: str, other: str) -> None:
    assert same_text_key(one) == same_text_key(other)


@given(st.text())
def test_cleaning_twice_changes_nothing_that_matters(text: str) -> None:
    once = clean_text(text)
    assert "\n" not in once
    assert same_text_key(clean_text(once)) == same_text_key(once)


@given(st.text(), st.integers(min_value=4, max_value=50))
def test_cutting_keeps_the_beginning_and_the_limit(text: str, limit: int) -> None:
    cut = cut_at_word(text, limit)
    assert len(cut) <= limit
    assert text.startswith(cut)


def test_the_split_of_a_record_is_fixed_for_good() -> None:
    assert hash_fraction("a comment", "prompts") == pytest.approx(0.109138, abs=1e-6)


@given(st.text(), st.text())
def test_hash_fractions_lie_in_the_unit_interval(key: str, salt: str) -> None:
    assert 0 <= hash_fraction(key, salt) < 1


@pytest.mark.parametrize("damage", [b"\0" * 40, b"\0" * 40 + b"\n", b"3\n", b"[" * 100_000 + b"\n", b"\xff\xfe\n",
                                    b'{"n": 3'])
def test_an_unfinished_file_is_continued_before_its_first_damaged_line(tmp_path: Path, damage: bytes) -> None:
    """After a power failure the end of a file may be zeros."""
    path = tmp_path / "records.jsonl"
    path.write_bytes(b'{"n": 1}\n{"n": 2}\n' + damage + b'{"n": 4}\n')
    with JsonlAppender(path) as out:
        assert out.existing == [{"n": 1}, {"n": 2}]
        out.write({"n": 3})
    assert path.read_text("utf-8") == '{"n": 1}\n{"n": 2}\n{"n": 3}\n'
