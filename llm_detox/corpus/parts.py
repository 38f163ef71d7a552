"""Finished pieces on the disk, and the files that they are joined into.

A part is there whole or not at all: it is written beside its place and renamed. A file is joined when all its parts are
there, in their order, and its parts are removed after that; so a run that was killed at any moment goes on from what is
there, and comes to the same bytes.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from llm_detox.corpus.inputs import CorpusFile
from llm_detox.corpus.reading import from_ipc, schema_of
from llm_detox.corpus.statistics import EXAMPLES, Example, Figures
from llm_detox.corpus.work import Outcome

_BLOCK = 2**20
_GROUP_ROWS = 2**16  # of a Parquet file's row group
_GROUP_BYTES = 2**26


class Parts:
    """The parts of a corpus in a folder that only an unfinished run needs."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(exist_ok=True)

    def has(self, file: int, number: int) -> bool:
        """Whether a piece is done; its figures are written after its data."""
        return self._note(file, number).exists()

    def write(self, file: int, number: int, outcome: Outcome) -> None:
        """Keep what became of a piece."""
        data, note = self._data(file, number), self._note(file, number)
        data.parent.mkdir(exist_ok=True)
        _replace(data, outcome.data)
        _replace(note, _noted(outcome.figures, outcome.examples, outcome.problem))

    def figures(self, file: int, number: int) -> tuple[Figures, list[Example], str | None]:
        """What the note of a finished piece says."""
        return _read_note(self._note(file, number))

    def joined(self, file: int) -> tuple[Figures, list[Example], str | None] | None:
        """What is known of a file whose parts were joined; None of others."""
        note = self._folder / f"{file:05d}.json"
        return _read_note(note) if note.exists() else None

    def join(self, file: int, source: CorpusFile, count: int, target: Path, header: bytes) -> None:
        """Write a file of its parts, and remove them.

        Args:
            count: how many parts it has.
            target: the file to write.
            header: what stands before the first.
        """
        figures, examples, problem = Figures(), list[Example](), None
        for number in range(count):
            own, shown, trouble = self.figures(file, number)
            figures.add(own)
            examples += shown[:EXAMPLES - len(examples)]
            problem = problem or trouble
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = target.with_name(f".{target.name}.part")
        paths = (self._data(file, number) for number in range(count))
        if source.format == "parquet":
            _join_batches(paths, source.path, beside)
        else:
            _join_bytes(paths, header, beside, source.compression)
        beside.rename(target)
        _replace(self._folder / f"{file:05d}.json", _noted(figures, examples, problem))
        shutil.rmtree(self._folder / f"{file:05d}", ignore_errors=True)

    def _data(self, file: int, number: int) -> Path:
        return self._folder / f"{file:05d}" / f"{number:07d}.part"

    def _note(self, file: int, number: int) -> Path:
        return self._data(file, number).with_suffix(".json")


def _replace(path: Path, data: bytes) -> None:
    beside = path.with_suffix(".writing")
    with beside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    beside.rename(path)


def _noted(figures: Figures, examples: list[Example], problem: str | None) -> bytes:
    return json.dumps({"figures": figures.as_dict(), "examples": [asdict(one) for one in examples],
                       "problem": problem}, ensure_ascii=False).encode()


def _read_note(path: Path) -> tuple[Figures, list[Example], str | None]:
    note = json.loads(path.read_bytes())
    return Figures.of(note["figures"]), [Example(**one) for one in note["examples"]], note["problem"]


def _join_bytes(parts: Iterator[Path], header: bytes, target: Path, compression: str) -> None:
    with _written(target, compression) as out:
        out.write(header)
        for path in parts:
            with path.open("rb") as part:
                shutil.copyfileobj(part, out, _BLOCK)


@contextmanager
def _written(target: Path, compression: str) -> Iterator[Any]:
    """The file to write to, with nothing of the time in what is compressed."""
    with ExitStack() as stack:
        file: IO[bytes] = stack.enter_context(target.open("wb"))
        if compression == "gz":
            yield stack.enter_context(gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0))
        elif compression == "zst":
            import pyarrow

            yield stack.enter_context(pyarrow.CompressedOutputStream(pyarrow.PythonFile(file, mode="w"), "zstd"))
        else:
            yield file


def _join_batches(parts: Iterator[Path], source: Path, target: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    schema = schema_of(source)
    held: list[Any] = []
    with pyarrow.parquet.ParquetWriter(target, schema, compression=_codec(source)) as out:

        def flush() -> None:
            out.write_table(pyarrow.Table.from_batches(held, schema).combine_chunks())
            held.clear()

        for path in parts:
            if data := path.read_bytes():
                held.append(from_ipc(data).cast(schema))
            if sum(len(one) for one in held) >= _GROUP_ROWS or sum(one.nbytes for one in held) >= _GROUP_BYTES:
                flush()
        if held:
            flush()


def _codec(source: Path) -> str:
    """How the columns of a Parquet file are compressed."""
    import pyarrow.parquet

    data = pyarrow.parquet.read_metadata(source)
    name = data.row_group(0).column(0).compression if data.num_row_groups and data.num_columns else "SNAPPY"
    return "NONE" if name == "UNCOMPRESSED" else str(name)
