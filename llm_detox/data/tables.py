"""Reading records from the formats that data sets come in: JSON lines, CSV, TSV, plain lines, Parquet."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from pathlib import Path

from llm_detox.data.records import Record, read_jsonl
from llm_detox.errors import DetoxError

_SUFFIXES = (".jsonl", ".jsonl.gz", ".csv", ".tsv", ".txt", ".parquet")


def read_table(path: Path) -> Iterator[Record]:
    """Yield the records of a file, or of every table in a folder, in the order of the names.

    A plain text file gives one record `{"text": line}` a line.

    Raises:
        DetoxError: no table there, an unknown format, or a line that cannot be read (with its number).
    """
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.name.endswith(_SUFFIXES))
        if not files:
            raise DetoxError("the folder holds no table", place=str(path),
                             remedy=f"give a folder with {', '.join(_SUFFIXES)} files")
        for file in files:
            yield from read_table(file)
    elif path.name.endswith((".jsonl", ".jsonl.gz")):
        yield from read_jsonl(path)
    elif path.suffix in (".csv", ".tsv"):
        yield from _read_delimited(path)
    elif path.suffix == ".txt":
        yield from ({"text": line} for _, line in _decoded_lines(path))
    elif path.suffix == ".parquet":
        yield from _read_parquet(path)
    else:
        raise DetoxError(f"the format {path.suffix or '(none)'!r} is not known", place=str(path),
                         remedy=f"use one of {', '.join(_SUFFIXES)}")


def column(record: Record, name: str, place: str) -> object:
    """The value of a column; dots step into nested records.

    Raises:
        DetoxError: the column is missing; the message lists those that are there.
    """
    value: object = record
    for part in name.split("."):
        if not isinstance(value, dict) or part not in value:
            there = ", ".join(map(str, record)) or "none"
            raise DetoxError(f"the column {name!r} is missing", place=place,
                             remedy=f"columns here: {there}; set the recipe's text_column or label_column")
        value = value[part]
    return value


def _decoded_lines(path: Path) -> Iterator[tuple[int, str]]:
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                line = raw.decode("utf-8")
            except UnicodeDecodeError as error:
                raise DetoxError(f"not UTF-8 (byte {error.start + 1} of the line)", place=f"{path}, line {number}",
                                 remedy="save the file as UTF-8, for example with `iconv -t UTF-8`") from None
            yield number, line.lstrip("\ufeff") if number == 1 else line


def _read_delimited(path: Path) -> Iterator[Record]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    lines = (line for _, line in _decoded_lines(path))
    if path.suffix == ".tsv":
        reader = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    else:
        reader = csv.DictReader(lines, strict=True)
    try:
        for row in reader:
            if None in row or None in row.values():
                raise DetoxError(f"the row does not have the header's {len(reader.fieldnames or [])} columns",
                                 place=f"{path}, line {reader.line_num}", remedy="quote fields that hold the separator")
            yield dict(row)
    except csv.Error as error:
        raise DetoxError(f"not valid CSV: {error}", place=f"{path}, line {reader.line_num}",
                         remedy="quote fields that hold quotes or line breaks") from None


def _read_parquet(path: Path) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                yield from batch.to_pylist()
    except pyarrow.ArrowInvalid as error:
        raise DetoxError(f"not a Parquet file: {error}", place=str(path), remedy="write it again") from None
