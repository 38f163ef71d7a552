"""What lies in the store: the files of a version with their SHA-256, the digest that is its address, and the pointer
object that names the current version."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from llm_detox.errors import DetoxError
from llm_detox.runs.folders import MANIFEST, digest_of
from llm_detox.storage.s3 import Place, error_code, is_missing

INDEX, POINTER = "checksums.json", "latest.json"
INNER_INDEX = f"artifacts/{INDEX}"  # the same list, for servers that are given the Hugging Face folder alone
MEBIBYTE = 1024 * 1024
_SCHEMA = 1
_READ = 4 * MEBIBYTE
_DIGEST_CHARS = 32
_ATTEMPTS = 8
_READS = 4


@dataclass(frozen=True)
class FileSum:
    """One file: its SHA-256, its size, and the ETag that a store gives it when sent in parts of the agreed size.

    `parts` holds the ETag of each part, of files that go in parts.
    """

    sha256: str
    bytes: int
    etag: str
    parts: tuple[str, ...] = ()


@dataclass(frozen=True)
class IndexedFile:
    """A file of a version: its SHA-256 in hex, and its size in bytes."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class Index:
    """`checksums.json` of a version: relative path (with `/`) -> file."""

    files: Mapping[str, IndexedFile]

    @classmethod
    def of(cls, sums: Mapping[str, FileSum]) -> Index:
        return cls({name: IndexedFile(one.sha256, one.bytes) for name, one in sums.items()})

    @classmethod
    def checked(cls, value: object, place: str) -> Index:
        """An index as read from a store, with names that stay inside the folder they are written to.

        Raises:
            DetoxError: it is malformed, or a name leads elsewhere.
        """
        files = value.get("files") if isinstance(value, dict) else None
        if not isinstance(files, dict) or not files or not all(_is_indexed(*item) for item in files.items()):
            raise DetoxError("the list of checksums is damaged", place=place, remedy="publish the model again")
        return cls({name: IndexedFile(file["sha256"], file["bytes"]) for name, file in files.items()})

    @property
    def digest(self) -> str:
        """The content address: it follows from names and checksums alone."""
        return digest_of({name: file.sha256 for name, file in self.files.items()})[:_DIGEST_CHARS]

    @property
    def bytes(self) -> int:
        """Of all files."""
        return sum(file.bytes for file in self.files.values())

    @property
    def largest(self) -> int:
        """Bytes of the largest file."""
        return max((file.bytes for file in self.files.values()), default=0)

    def text(self) -> str:
        """The content of `checksums.json`."""
        return json.dumps({"schema": _SCHEMA, **asdict(self)}, indent=2, sort_keys=True)


@dataclass(frozen=True)
class Version:
    """A published version, as the pointer lists it; `published` is UTC, `files` their number."""

    digest: str
    address: str
    published: str = ""
    bytes: int = 0
    files: int = 0


@dataclass(frozen=True)
class Pointer:
    """`latest.json`: the digest of the current version, and all versions, newest first.

    `etag` is the one under which it was read.
    """

    digest: str
    address: str
    versions: tuple[Version, ...]
    etag: str = field(default="", compare=False)

    def text(self) -> str:
        """The content of `latest.json`."""
        return json.dumps({"schema": _SCHEMA, "digest": self.digest, "address": self.address,
                           "versions": [asdict(one) for one in self.versions]}, indent=2)


@dataclass(frozen=True)
class Stored:
    """A small JSON object and the ETag under which it was read."""

    value: object
    etag: str


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
    paths = {name: path for name, path in paths.items() if name not in (MANIFEST, INDEX, INNER_INDEX)}
    if not paths:
        raise DetoxError("the folder is empty", place=str(folder), remedy="pass the folder that `convert` wrote")
    with ThreadPoolExecutor(4) as pool:  # hashing releases the interpreter lock
        sums = pool.map(lambda path: sum_file(path, part), paths.values())
        return dict(zip(paths, sums, strict=True))


def read_json(client: Any, place: Place) -> Stored | None:
    """A small JSON object; None where there is none.

    Raises:
        DetoxError: it is not JSON.
    """
    from botocore.exceptions import BotoCoreError

    for attempt in range(1, _READS + 1):
        try:
            answer = client.get_object(Bucket=place.bucket, Key=place.key)
            return Stored(json.loads(answer["Body"].read()), answer["ETag"])
        except client.exceptions.ClientError as error:
            if is_missing(error):
                return None
            raise
        except BotoCoreError:  # the connection broke after the headers, where botocore no longer repeats
            if attempt == _READS:
                raise
        except ValueError:
            raise DetoxError("damaged: it is not JSON", place=str(place), remedy="publish the model again") from None
    return None


def read_index(client: Any, version: Place) -> Index | None:
    """The index of a version; None where there is none.

    Raises:
        DetoxError: it is damaged.
    """
    stored = read_json(client, version / INDEX)
    return Index.checked(stored.value, str(version / INDEX)) if stored else None


def read_pointer(client: Any, place: Place) -> Pointer | None:
    """The pointer below a published URL; None where there is none.

    Raises:
        DetoxError: it is damaged.
    """
    stored = read_json(client, place / POINTER)
    if stored is None:
        return None
    try:
        return _pointer(stored, place)
    except (KeyError, TypeError, AttributeError):
        raise DetoxError("the pointer is damaged", place=str(place / POINTER),
                         remedy="publish the model again") from None


def move_pointer(client: Any, place: Place, change: Callable[[Pointer | None], Pointer]) -> None:
    """Replace the pointer by `change(old one)`; when somebody else moved it meanwhile, read again and repeat.

    Raises:
        DetoxError: others kept moving it.
    """
    conditional = True
    for _ in range(_ATTEMPTS):
        old = read_pointer(client, place)
        condition = ({"IfMatch": old.etag} if old else {"IfNoneMatch": "*"}) if conditional else {}
        try:
            client.put_object(Bucket=place.bucket, Key=(place / POINTER).key, Body=change(old).text().encode(),
                              ContentType="application/json", CacheControl="no-cache", **condition)
            return
        except client.exceptions.ClientError as error:
            # Older stores have no conditional writes, and an older MinIO looks in vain for what should not be there.
            if error_code(error) == "NotImplemented" or (old is None and conditional and is_missing(error)):
                conditional = False  # the last writer wins there
            elif error_code(error) not in ("PreconditionFailed", "ConditionalRequestConflict", "412", "409"):
                raise
    raise DetoxError("others keep publishing here at the same time", place=str(place), remedy="try again later")


def _pointer(stored: Stored, place: Place) -> Pointer:
    value: Any = stored.value
    if not isinstance(value["digest"], str) or not isinstance(value["versions"], list):
        raise TypeError
    versions = tuple(Version(str(one["digest"]), one.get("address", str(place / str(one["digest"]))),
                             one.get("published", ""), one.get("bytes", 0), one.get("files", 0))
                     for one in value["versions"])
    return Pointer(value["digest"], value.get("address", str(place / value["digest"])), versions, stored.etag)


def _is_indexed(name: str, file: object) -> bool:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or not path.parts or str(path) != name:
        return False
    return isinstance(file, dict) and isinstance(file.get("sha256"), str) and isinstance(file.get("bytes"), int)


def _md5(data: bytes = b"") -> hashlib._Hash:
    return hashlib.md5(data, usedforsecurity=False)
