"""What a published version consists of: every file with its SHA-256, and the digest that is its address."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from llm_detox.errors import DetoxError
from llm_detox.folders import MANIFEST, digest_of

INDEX = "checksums.json"
MEBIBYTE = 1024 * 1024
_READ = 4 * MEBIBYTE
_DIGEST_CHARS = 32


@dataclass(frozen=True)
class FileSum:
    """One file: its SHA-256, its size, and the ETag that a store gives it when sent in parts of the agreed size.

    `parts` holds the ETag of each part, of files that go in parts.
    """

    sha256: str
    bytes: int
    etag: str
    parts: tuple[str, ...] = ()


def part_size(largest: int) -> int:
    """Bytes a part for files up to `largest`: 16 MiB, more where the limit of 10,000 parts would be near."""
    size = 16 * MEBIBYTE
    while largest > size * 5000:
        size *= 2
    return size


def sum_file(path: Path, part: int) -> FileSum:
    """Read a file once for both sums; `part` is the size in bytes of an upload's parts."""
    whole, parts, piece, filled, size = hashlib.sha256(), [], _md5(), 0, 0
    with path.open("rb") as file:
        while block := file.read(min(_READ, part - filled)):
            whole.update(block)
            piece.update(block)
            filled += len(block)
            size += len(block)
            if filled == part:
                parts.append(piece.digest())
                piece, filled = _md5(), 0
    if not parts:
        etag = piece.hexdigest()  # below one part it goes in a single request
    else:
        parts += [piece.digest()] if filled else []
        etag = f"{_md5(b''.join(parts)).hexdigest()}-{len(parts)}"
    return FileSum(whole.hexdigest(), size, etag, tuple(part.hex() for part in parts))


def sum_folder(folder: Path, part: int) -> dict[str, FileSum]:
    """Relative path (with `/`) -> sums, for all that is published of a folder.

    The manifest of the step that wrote the folder stays behind: it holds times, and the same model should have
    the same address.

    Raises:
        DetoxError: the folder is missing or empty.
    """
    if not folder.is_dir():
        raise DetoxError("no such folder", place=str(folder), remedy="pass the folder that `convert` wrote")
    paths = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    paths = {name: path for name, path in paths.items() if name not in (MANIFEST, INDEX)}
    if not paths:
        raise DetoxError("the folder is empty", place=str(folder), remedy="pass the folder that `convert` wrote")
    with ThreadPoolExecutor(4) as pool:  # hashing releases the interpreter lock
        sums = pool.map(lambda path: sum_file(path, part), paths.values())
        return dict(zip(paths, sums, strict=True))


def index_of(sums: Mapping[str, FileSum]) -> dict[str, Any]:
    """The JSON value of a version's index."""
    return {"schema": 1, "files": {name: {"sha256": one.sha256, "bytes": one.bytes} for name, one in sums.items()}}


def digest_of_index(index: Mapping[str, Any]) -> str:
    """The content address: it follows from names and checksums alone."""
    return digest_of({name: file["sha256"] for name, file in index["files"].items()})[:_DIGEST_CHARS]


def checked_index(value: Any, place: str) -> dict[str, Any]:
    """An index as read from a store, with names that stay inside the folder they are written to.

    Raises:
        DetoxError: it is malformed, or a name leads elsewhere.
    """
    broken = DetoxError("the list of checksums is damaged", place=place, remedy="publish the model again")
    if not isinstance(value, dict) or not isinstance(value.get("files"), dict) or not value["files"]:
        raise broken
    for name, file in value["files"].items():
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or not path.parts or str(path) != name:
            raise broken
        if not (isinstance(file, dict) and isinstance(file.get("sha256"), str) and isinstance(file.get("bytes"), int)):
            raise broken
    return value


def _md5(data: bytes = b"") -> hashlib._Hash:
    return hashlib.md5(data, usedforsecurity=False)
