"""What lies in the store: the files of a version with their SHA-256, the digest that is its address, and the pointer
object that names the current version."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from llm_detox.errors import DetoxError
from llm_detox.runs.folders import MANIFEST, digest_of
from llm_detox.storage.s3 import Place

INDEX, POINTER = "checksums.json", "latest.json"
PUBLISH_AGAIN = "publish the model again: that writes what is damaged anew; or roll back to another version"
INNER_INDEX = f"artifacts/{INDEX}"  # the same list, for servers that are given the Hugging Face folder alone
MEBIBYTE = 1024 * 1024
_SCHEMA = 1
_READ = 4 * MEBIBYTE
_DIGEST_CHARS = 32
_DIGEST = re.compile(rf"[0-9a-f]{{{_DIGEST_CHARS}}}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_UNWRITABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
_LONGEST_NAME, _LONGEST_PART = 1024, 255  # bytes: of a key in S3, and of a name in a folder
LARGEST_OBJECT = 50 * 2**40  # bytes, of S3


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

    @classmethod
    def checked(cls, value: object, name: str) -> IndexedFile:
        """From a list of checksums.

        Raises:
            ValueError, TypeError, KeyError: it is something else.
        """
        file: Any = value
        if not _SHA256.fullmatch(file["sha256"]):
            raise ValueError(f"the checksum of {name!r:.80}")
        return cls(file["sha256"], _count_of(file["bytes"], f"the size of {name!r:.80}"))


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
        try:
            files = {name: IndexedFile.checked(file, name) for name, file in value["files"].items()}  # type: ignore[index]
            if not files:
                raise ValueError("it is empty")
            if {INDEX, INNER_INDEX} & files.keys():
                raise ValueError("it lists itself")
            check_names(files)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DetoxError(f"the list of checksums is damaged ({_shown(error)})", place=place,
                             remedy=PUBLISH_AGAIN) from None
        return cls(files)

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

    @classmethod
    def checked(cls, value: object, place: Place) -> Version:
        """From the pointer below a place.

        Raises:
            ValueError, TypeError, KeyError, AttributeError: it is something else.
        """
        version: Any = value
        digest, published = version["digest"], version.get("published", "")
        if not is_digest(digest):
            raise ValueError(f"{digest!r:.80} is no digest of a version")
        if not isinstance(published, str):
            raise ValueError("a time that is no text")
        # The address is not taken from there: it could lead elsewhere, and is another one where the store was copied.
        return cls(digest, str(place / digest), published, _count_of(version.get("bytes", 0), "a version's size"),
                   _count_of(version.get("files", 0), "a version's number of files"))


@dataclass(frozen=True)
class Pointer:
    """`latest.json`: the digest of the current version, and all versions, newest first.

    `etag` is the one under which it was read.
    """

    digest: str
    address: str
    versions: tuple[Version, ...]
    etag: str = field(default="", compare=False)

    @classmethod
    def checked(cls, value: object, place: Place, etag: str) -> Pointer:
        """As read from below a place.

        Raises:
            ValueError: it is malformed; the message says in what.
        """
        pointer: Any = value
        try:
            if not is_digest(pointer["digest"]):
                raise ValueError(f"{pointer['digest']!r:.80} is no digest of a version")
            if not isinstance(pointer["versions"], list):
                raise ValueError("the versions are no list")
            versions = tuple(Version.checked(one, place) for one in pointer["versions"])
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(_shown(error)) from None
        return cls(pointer["digest"], str(place / pointer["digest"]), versions, etag)

    def text(self) -> str:
        """The content of `latest.json`."""
        return json.dumps({"schema": _SCHEMA, "digest": self.digest, "address": self.address,
                           "versions": [asdict(one) for one in self.versions]}, indent=2)


@dataclass(frozen=True)
class Publication:
    """What `publish` did.

    Args:
        address: of the version: `s3://bucket/prefix/digest`, or `oci://registry/repository@sha256:...`.
        pointer: the place of all versions: `s3://bucket/prefix`, or the image's tag.
        digest: of the content.
        files, bytes: of the version.
        sent, copied, kept: how many of the files came from here, from another version (of an image:
            of the base), or were there already.
        seconds: that it took.
    """

    address: str
    pointer: str
    digest: str
    files: int
    bytes: int
    sent: int
    copied: int
    kept: int
    seconds: float


@dataclass(frozen=True)
class LocalModel:
    """A version that is on this machine: its address and digest, the number of its files, their bytes, the seconds."""

    address: str
    digest: str
    files: int
    bytes: int
    seconds: float


def is_digest(value: object) -> bool:
    """Whether a value has the form of a version's digest."""
    return isinstance(value, str) and _DIGEST.fullmatch(value) is not None


def _shown(error: Exception) -> str:
    """What is wrong with a value of another structure, for people."""
    if isinstance(error, KeyError):
        return f"{error} is missing"
    return str(error) if isinstance(error, ValueError) else "other values than it should have"


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
    """Relative path (with `/`) -> sums, for all that is published of a folder; see `files_to_publish`."""
    paths = files_to_publish(folder)
    with ThreadPoolExecutor(4) as pool:  # hashing releases the interpreter lock
        sums = pool.map(lambda path: sum_file(path, part), paths.values())
        return dict(zip(paths, sums, strict=True))


def files_to_publish(folder: Path) -> dict[str, Path]:
    """Relative path (with `/`) -> file, for all that is published of a folder, in the order of the names.

    The manifest of the step that wrote the folder stays behind: it holds times, and the same model should have
    the same address.

    Raises:
        DetoxError: the folder is missing or empty, or a file has a name that stores and disks do not take.
    """
    if not folder.is_dir():
        raise DetoxError("no such folder", place=str(folder), remedy="pass the folder that `convert` wrote")
    paths = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    paths = {name: path for name, path in paths.items() if name not in (MANIFEST, INDEX, INNER_INDEX)}
    if not paths:
        raise DetoxError("the folder is empty", place=str(folder), remedy="pass the folder that `convert` wrote")
    try:
        check_names(paths)
    except ValueError as error:
        raise DetoxError(f"cannot be published: {error}", place=str(folder), remedy="give it another name") from None
    return paths


def check_names(names: Collection[str]) -> None:
    """Look whether files of these names (with `/`) can lie in one folder and in a store, and nowhere else.

    Raises:
        ValueError: one leads out of the folder, is no text, is too long, or is a folder of another.
    """
    for name in names:
        if fault := _fault_of(name, names):
            raise ValueError(f"the name {name!r:.80} {fault}")


def _fault_of(name: str, names: Collection[str]) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or not path.parts or str(path) != name:
        return "leads out of the folder"
    if _UNWRITABLE.search(name):
        return "has a control character, or is not UTF-8"
    if len(name.encode()) > _LONGEST_NAME or max(len(part.encode()) for part in path.parts) > _LONGEST_PART:
        return f"is longer than a store or a disk takes ({_LONGEST_NAME} bytes, {_LONGEST_PART} a part)"
    if parent := next((one for one in map(str, path.parents) if one in names), None):
        return f"is a file in {parent!r:.80}, which is a file itself"
    return ""


def _count_of(value: object, name: str) -> int:
    """A number of bytes or files."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= LARGEST_OBJECT:
        raise ValueError(f"{name} is {value!r:.40}")
    return value


def _md5(data: bytes = b"") -> hashlib._Hash:
    return hashlib.md5(data, usedforsecurity=False)
