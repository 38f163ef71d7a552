"""A file as pieces of some thousand records. One piece is in memory at a time, whatever the size of the file."""

from __future__ import annotations

import csv
import gzip
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from llm_detox.corpus.inputs import CorpusFile
from llm_detox.data.sources import damaged_csv, damaged_parquet
from llm_detox.errors import DetoxError, stand_in

PIECE = 2048  # records
_PIECE_BYTES = 2**24  # of long records fewer are taken
_LONGEST_LINE = 2**26
_BLOCK = 2**16  # small, so that the progress is that of the piece
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Piece:
    """Neighbouring records of a file.

    Attributes:
        file, number: which file of the corpus, and which piece of it, counted from 0.
        first: the number of its first line or row in the file, counted from 1.
        records: as they are written: lines with their ends, rows of CSV, for Parquet one batch of Arrow.
        count: how many records these are.
        read_bytes: how far the file was read for it.
        header: of CSV, the first row as it is written.
        repeated: places in it of records whose text came before in the corpus.
    """

    file: int
    number: int
    first: int
    records: tuple[bytes, ...]
    count: int
    read_bytes: int
    header: bytes = b""
    repeated: frozenset[int] = frozenset()


def pieces(file: CorpusFile, number: int, size: int = PIECE) -> Iterator[Piece]:
    """The pieces of a file, in order; an empty file has one piece without records.

    Args:
        number: of the file in the corpus.
        size: records of a piece.

    Raises:
        DetoxError: the file cannot be read, or is damaged.
    """
    read = _parquet(file, size) if file.format == "parquet" else _texts(file, size)
    for count, piece in enumerate(read):
        yield replace(piece, file=number, number=count)


def _texts(file: CorpusFile, size: int) -> Iterator[Piece]:
    with ExitStack() as stack:
        try:
            raw = stack.enter_context(file.path.open("rb"))
            lines = _lines(file, stack.enter_context(_opened(raw, file)))
            rows = _rows(lines, file) if file.format == "csv" else (line for line in lines if line[1].strip())
            header = next(rows, (0, b""))[1] if file.format in ("csv", "tsv") else b""
            yield from _cut(rows, raw, header, size)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise DetoxError(f"the compressed file is damaged or cut ({error})", place=str(file.path),
                             remedy="fetch it again; what was cleaned before it is kept") from None
        except (OSError, ValueError) as error:  # the second of zstd
            raise DetoxError(f"cannot be read: {getattr(error, 'strerror', None) or error}", place=str(file.path),
                             remedy="check the path, its rights, and whether it is whole") from None


def _cut(rows: Iterator[tuple[int, bytes]], raw: IO[bytes], header: bytes, size: int) -> Iterator[Piece]:
    batch: list[bytes] = []
    first, held, read, count = 1, 0, 0, 0

    def piece() -> Piece:
        return Piece(0, 0, first, tuple(batch), len(batch), raw.tell() - read, header)

    for line, row in rows:
        if not batch:
            first = line
        batch.append(row)
        held += len(row)
        if len(batch) == size or held > _PIECE_BYTES:
            yield piece()
            batch, held, read, count = [], 0, raw.tell(), count + 1
    if batch or not count:
        yield piece()


def _opened(raw: IO[bytes], file: CorpusFile) -> Any:
    if file.compression == "gz":
        return gzip.GzipFile(fileobj=raw)
    if file.compression == "zst":
        import pyarrow

        return pyarrow.CompressedInputStream(pyarrow.PythonFile(raw, mode="r"), "zstd")
    return raw


def _lines(file: CorpusFile, stream: Any) -> Iterator[tuple[int, bytes]]:
    """Number and bytes of each line, without a byte order mark."""
    buffer, number = b"", 0
    while block := stream.read(_BLOCK):
        parts = (buffer + bytes(block)).split(b"\n")
        buffer = parts.pop()
        if len(buffer) > _LONGEST_LINE:
            raise DetoxError(f"the line has more than {_LONGEST_LINE // 2**20} MiB", place=f"{file.path}, line "
                             f"{number + len(parts) + 1}", remedy="write each record on a line of its own")
        for part in parts:
            number += 1
            yield number, _first(part, number, file) + b"\n"
    if buffer:
        yield number + 1, _first(buffer, number + 1, file) + b"\n"


def _first(line: bytes, number: int, file: CorpusFile) -> bytes:
    if number > 1:
        return line
    if other := stand_in(line[:256], str(file.path)):
        raise other
    return line.removeprefix(_BOM)


def _rows(lines: Iterator[tuple[int, bytes]], file: CorpusFile) -> Iterator[tuple[int, bytes]]:
    """The rows of a table, each with the lines that it is written on."""
    csv.field_size_limit(_LONGEST_LINE)
    taken: list[tuple[int, bytes]] = []

    def text() -> Iterator[str]:
        for line in lines:
            taken.append(line)
            yield line[1].decode("utf-8", "surrogateescape")

    reader = csv.reader(text(), strict=True, skipinitialspace=True)
    while True:
        taken.clear()
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise damaged_csv(error, f"{file.path}, line {taken[0][0] if taken else 1}") from None
        if row is None:
            return
        if row:
            yield taken[0][0], b"".join(line for _, line in taken)


def _parquet(file: CorpusFile, size: int) -> Iterator[Piece]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file.path) as table:
            total, done = table.metadata.num_rows, 0
            if not total:
                yield Piece(0, 0, 1, (), 0, file.bytes)
            for batch in table.iter_batches(batch_size=size):
                after = done + batch.num_rows
                yield Piece(0, 0, done + 1, (to_ipc(batch),), batch.num_rows,
                            file.bytes * after // total - file.bytes * done // total)
                done = after
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        raise damaged_parquet(error, file.path) from None


def to_ipc(batch: Any) -> bytes:
    """A batch of Arrow as bytes, with its schema."""
    import pyarrow

    sink = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return bytes(sink.getvalue().to_pybytes())


def from_ipc(data: bytes) -> Any:
    """The batch of `to_ipc`."""
    import pyarrow

    return pyarrow.ipc.open_stream(data).read_next_batch()


def schema_of(path: Path) -> Any:
    """The schema of a Parquet file."""
    import pyarrow.parquet

    return pyarrow.parquet.read_schema(path)
