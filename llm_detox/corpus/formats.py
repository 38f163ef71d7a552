"""The texts of a piece, and the piece with other texts in their place: everything else of a record stays as it is.

A record that keeps its text is written byte for byte as it was read.
"""

from __future__ import annotations

import csv
import io
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from llm_detox.corpus.inputs import CorpusFile
from llm_detox.corpus.reading import Piece, from_ipc, schema_of, to_ipc
from llm_detox.data.records import Record, parse_record, text_of
from llm_detox.data.sources import column
from llm_detox.errors import DetoxError, UsageError


class Unreadable:
    """A record without a text that can be scored; `error` says why."""

    def __init__(self, error: DetoxError) -> None:
        self.error = error


class Layout(ABC):
    """The texts of a file's pieces.

    Args:
        name: of the file, for people.
        text: the column that holds the text.
    """

    def __init__(self, name: str, text: str) -> None:
        self.name, self.text = name, text

    @abstractmethod
    def texts(self, piece: Piece) -> list[str | Unreadable]:
        """The text of each record of a piece."""

    @abstractmethod
    def written(self, piece: Piece, texts: Sequence[str | None], before: Sequence[str | Unreadable]) -> bytes:
        """The piece with these texts.

        Args:
            texts: None takes the record out.
            before: what `texts` gave.
        """


class Lines(Layout):
    """Records that stand on lines of their own, one after the other."""

    def texts(self, piece: Piece) -> list[str | Unreadable]:
        return [self._read(record, f"{self.name}, record {number} from line {piece.first}")
                for number, record in enumerate(piece.records, start=1)]

    def written(self, piece: Piece, texts: Sequence[str | None], before: Sequence[str | Unreadable]) -> bytes:
        return b"".join(record if text == old else self._write(record, text) for record, text, old in
                        zip(piece.records, texts, before, strict=True) if text is not None)

    def _read(self, record: bytes, place: str) -> str | Unreadable:
        try:
            return self._text(record, place)
        except UnicodeDecodeError as error:
            return Unreadable(DetoxError(f"not UTF-8 (byte {error.start + 1})", place=place,
                                         remedy="save the file as UTF-8, for example with `iconv -t UTF-8`"))
        except DetoxError as error:
            return Unreadable(error)

    @abstractmethod
    def _text(self, record: bytes, place: str) -> str:
        """The text of a record."""

    @abstractmethod
    def _write(self, record: bytes, text: str) -> bytes:
        """The record with another text."""


class JsonLines(Lines):
    """An object a line; dots in the column's name step into objects."""

    def _text(self, record: bytes, place: str) -> str:
        value = parse_record(record.decode(), place)
        if isinstance(text := value.get(self.text), str):
            return text
        return text_of({self.text: column(value, self.text, place)}, self.text, place)

    def _write(self, record: bytes, text: str) -> bytes:
        value = parse_record(record.decode(), self.name)
        return (json.dumps(_with(value, self.text, text), ensure_ascii=False) + "\n").encode()


def _with(record: Record, name: str, text: str) -> Record:
    if name in record:
        return {**record, name: text}
    first, _, rest = name.partition(".")
    return {**record, first: _with(record[first], rest, text)}


class Table(Lines):
    """Rows with a header: CSV, or lines with tabs.

    Raises:
        UsageError: the header has no such column.
    """

    def __init__(self, name: str, text: str, header: bytes, *, tabs: bool) -> None:
        super().__init__(name, text)
        self._tabs = tabs
        names = [one.strip() for one in self._fields(header.decode("utf-8", "replace").encode())]
        if text not in names:
            raise UsageError(f"the column {text!r} is missing", place=name,
                             remedy=f"columns here: {', '.join(names) or 'none'}; name one of them with --text")
        self._column, self._count = names.index(text), len(names)

    def _fields(self, record: bytes) -> list[str]:
        text = record.decode()
        if self._tabs:
            return text.rstrip("\r\n").split("\t")
        return next(csv.reader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True), [])

    def _text(self, record: bytes, place: str) -> str:
        fields = self._fields(record)
        if len(fields) != self._count:
            raise DetoxError(f"the row has {len(fields)} columns, the header {self._count}", place=place,
                             remedy="quote fields that hold the separator")
        return fields[self._column]

    def _write(self, record: bytes, text: str) -> bytes:
        fields = self._fields(record)
        fields[self._column] = " ".join(text.split()) if self._tabs else text
        if self._tabs:
            return ("\t".join(fields) + "\n").encode()
        sink = io.StringIO()
        csv.writer(sink, lineterminator="\n").writerow(fields)
        return sink.getvalue().encode()


class PlainLines(Lines):
    """A text a line."""

    def _text(self, record: bytes, place: str) -> str:
        return record.decode().rstrip("\r\n")

    def _write(self, record: bytes, text: str) -> bytes:
        return (" ".join(text.split()) + "\n").encode()


class ArrowBatch(Layout):
    """The rows of a Parquet file, a batch of Arrow a piece."""

    def texts(self, piece: Piece) -> list[str | Unreadable]:
        if not piece.records:
            return []
        values = from_ipc(piece.records[0]).column(self.text).to_pylist()
        return [value if isinstance(value, str) else self._missing(piece.first + number)
                for number, value in enumerate(values)]

    def _missing(self, row: int) -> Unreadable:
        return Unreadable(DetoxError(f"no text in the column {self.text!r}", place=f"{self.name}, row {row}",
                                     remedy="leave the row out, or name another column with --text"))

    def written(self, piece: Piece, texts: Sequence[str | None], before: Sequence[str | Unreadable]) -> bytes:
        import pyarrow

        if not piece.records:
            return b""
        batch = from_ipc(piece.records[0])
        if any(text is not None and text != old for text, old in zip(texts, before, strict=True)):
            place = batch.schema.get_field_index(self.text)
            field = batch.schema.field(place)
            kept = [old if isinstance(old, str) and text is None else text
                    for text, old in zip(texts, before, strict=True)]
            batch = batch.set_column(place, field, pyarrow.array(kept, type=field.type))
        left = batch.filter(pyarrow.array([text is not None for text in texts]))
        return to_ipc(left)


def _parquet_layout(name: str, text: str, schema: Any) -> ArrowBatch:
    """The layout of a Parquet file.

    Raises:
        UsageError: there is no such column, or it holds no text.
    """
    import pyarrow

    if text not in schema.names:
        raise UsageError(f"the column {text!r} is missing", place=name,
                         remedy=f"columns here: {', '.join(schema.names)}; name one of them with --text")
    kind = schema.field(text).type
    if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
        raise UsageError(f"the column {text!r} holds {kind}, and text is needed", place=name,
                         remedy="name a column of strings with --text")
    return ArrowBatch(name, text)


def layout_of(file: CorpusFile, text: str, header: bytes) -> Layout:
    """How the records of a file are written.

    Raises:
        UsageError: it has no such column.
    """
    if file.format == "parquet":
        return _parquet_layout(file.name, text, schema_of(file.path))
    if file.format in ("csv", "tsv") and header:
        return Table(file.name, text, header, tabs=file.format == "tsv")
    return (JsonLines if file.format == "jsonl" else PlainLines)(file.name, text)
