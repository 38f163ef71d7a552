"""Which files a corpus has: those of a file, a folder, a pattern or an address in S3, with their formats."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Literal

from llm_detox.errors import UsageError
from llm_detox.recipe.addresses import S3

Format = Literal["jsonl", "csv", "tsv", "txt", "parquet"]
Compression = Literal["", "gz", "zst"]
_FORMATS: dict[str, Format] = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "tsv", ".txt": "txt",
                               ".parquet": "parquet"}
_COMPRESSIONS: dict[str, Compression] = {".gz": "gz", ".zst": "zst"}
_PATTERN = set("*?[")
KNOWN = ".jsonl, .ndjson, .csv, .tsv, .txt (each also with .gz or .zst behind it) or .parquet"


@dataclass(frozen=True)
class CorpusFile:
    """A file of the corpus.

    Attributes:
        path: where it lies.
        name: its path inside the corpus, and inside the output.
        format: what its records are written in.
        compression: around it, "" for none.
        bytes: its size.
    """

    path: Path
    name: str
    format: Format
    compression: Compression
    bytes: int


def corpus_files(source: str) -> tuple[list[CorpusFile], list[str]]:
    """The files of a corpus in the order of their names, and the names of files that are none of its formats.

    Args:
        source: a file, a folder, a pattern such as `data/**/*.jsonl.gz`, or an address such as `s3://bucket/prefix`.

    Raises:
        UsageError: there is no file, or none in a format that is known.
        DetoxError: the store refuses or fails.
    """
    base, paths = _paths(source)
    known = [file for path in paths if (file := _file(path, base))]
    others = [str(path.relative_to(base)) for path in paths if not _file(path, base)]
    if not known:
        raise UsageError("no file of a corpus is there", place=source, remedy=f"give files that end with {KNOWN}")
    return known, others


def _paths(source: str) -> tuple[Path, Sequence[Path]]:
    """The files, and the folder that their names in the output begin at."""
    if source.startswith(S3):
        from llm_detox.storage import fetch_source  # boto3 loads only where S3 is used

        source = str(fetch_source(source))
    path = Path(source).expanduser()
    if path.is_file():
        return path.parent, [path]
    if path.is_dir():
        return path, [file for file in sorted(path.rglob("*")) if file.is_file() and not _is_hidden(file, path)]
    if not _PATTERN & set(source):
        raise UsageError("no such file or folder", place=source,
                         remedy="give a file, a folder, a pattern in quotes, or s3://bucket/prefix")
    fixed = takewhile(lambda part: not _PATTERN & set(part), path.parts)
    found = (Path(one) for one in glob.glob(str(path), recursive=True))
    return Path(*fixed), sorted(file for file in found if file.is_file())


def _is_hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


def _file(path: Path, base: Path) -> CorpusFile | None:
    compression = _COMPRESSIONS.get(path.suffix, "")
    kind = _FORMATS.get(Path(path.stem).suffix if compression else path.suffix)
    if kind is None or (kind == "parquet" and compression):
        return None
    return CorpusFile(path, str(path.relative_to(base)), kind, compression, path.stat().st_size)
