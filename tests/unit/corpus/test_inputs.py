"""Which files a corpus has, and how they are cut into pieces."""

from __future__ import annotations

import gzip
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from llm_detox.corpus.formats import layout_of
from llm_detox.corpus.inputs import corpus_files
from llm_detox.corpus.reading import pieces
from llm_detox.errors import DetoxError, UsageError


def test_a_folder_has_its_files_at_any_depth_and_names_those_that_are_no_corpus(tmp_path: Path) -> None:
    for name in ("b/one.jsonl.gz", "a.csv", "c.parquet", "deep/er/x.tsv", ".hidden.jsonl", "notes.pdf", "z.jsonl.zst"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    files, others = corpus_files(str(tmp_path))
    assert [(file.name, file.format, file.compression) for file in files] == [
        ("a.csv", "csv", ""), ("b/one.jsonl.gz", "jsonl", "gz"), ("c.parquet", "parquet", ""),
        ("deep/er/x.tsv", "tsv", ""), ("z.jsonl.zst", "jsonl", "zst")]
    assert others == ["notes.pdf"]


def test_a_pattern_names_files_from_its_fixed_part_on(tmp_path: Path) -> None:
    for name in ("2020/a.jsonl", "2021/b.jsonl", "2021/c.csv"):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_text("{}\n", "utf-8")
    files, _ = corpus_files(f"{tmp_path}/data/**/*.jsonl")
    assert [file.name for file in files] == ["2020/a.jsonl", "2021/b.jsonl"]


@pytest.mark.parametrize("source", ["missing", "none/*.jsonl", "."])
def test_no_corpus_is_said_before_any_work(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="remedy"):
        corpus_files(source)


def test_pieces_put_together_are_the_file_and_their_bytes_its_size(tmp_path: Path) -> None:
    lines = b"".join(b'{"text": "number %d"}\n' % number for number in range(25))
    (tmp_path / "plain.jsonl").write_bytes(b"\xef\xbb\xbf" + lines.rstrip(b"\n"))
    (tmp_path / "packed.jsonl.gz").write_bytes(gzip.compress(lines))
    with pyarrow.CompressedOutputStream(str(tmp_path / "packed.jsonl.zst"), "zstd") as out:
        out.write(lines)
    files, _ = corpus_files(str(tmp_path))
    assert len(files) == 3
    for number, file in enumerate(files):
        found = list(pieces(file, number, 10))
        assert [(piece.file, piece.number, piece.first, piece.count) for piece in found] == [
            (number, 0, 1, 10), (number, 1, 11, 10), (number, 2, 21, 5)]
        assert b"".join(record for piece in found for record in piece.records) == lines
        assert sum(piece.read_bytes for piece in found) == file.bytes


def test_a_row_of_a_table_may_have_several_lines(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_bytes(b'id,text\n1,"two\nlines"\n\n2,one\n')
    [piece] = pieces(corpus_files(str(table))[0][0], 0)
    assert piece.header == b"id,text\n"
    assert piece.records == (b'1,"two\nlines"\n', b"2,one\n")


def test_a_file_that_is_cut_is_refused_with_its_place(tmp_path: Path) -> None:
    whole = gzip.compress(b'{"text": "a"}\n' * 1000)
    packed = pyarrow.compress(b'{"text": "a"}\n' * 1000, codec="zstd", asbytes=True)
    for name, data in (("cut.jsonl.gz", whole[:-12]), ("cut.jsonl.zst", packed[:-8]), ("cut.parquet", b"PAR1")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DetoxError, match=name):
            list(pieces(corpus_files(str(tmp_path / name))[0][0], 0))


def test_a_missing_column_is_named_with_those_that_are_there(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_bytes(b"id,body\n1,one\n")
    pyarrow.parquet.write_table(pyarrow.table({"id": [1], "body": [7]}), tmp_path / "table.parquet")
    for name in ("table.csv", "table.parquet"):
        file = corpus_files(str(tmp_path / name))[0][0]
        with pytest.raises(UsageError, match="body"):
            layout_of(file, "text", b"id,body\n")
    with pytest.raises(UsageError, match="holds int64"):
        layout_of(corpus_files(str(tmp_path / "table.parquet"))[0][0], "body", b"")
