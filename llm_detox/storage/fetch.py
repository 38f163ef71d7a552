"""Fetching: into a folder beside, every file checked against its SHA-256, then renamed in place."""

from __future__ import annotations

import errno
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from llm_detox.errors import DetoxError
from llm_detox.progress import say
from llm_detox.runs.artifacts import ModelFolder
from llm_detox.runs.folders import cache_dir, digest_of, sha256_of
from llm_detox.storage.layout import INDEX, Index, Version, part_size, read_index, read_pointer
from llm_detox.storage.publishing import listing
from llm_detox.storage.s3 import Place, clear_errors, connect, endpoint_of, is_missing, may_pass
from llm_detox.storage.transfer import PARTS_SUFFIX, transfers

_ROUNDS = 3


@dataclass(frozen=True)
class LocalModel:
    """A version that is on this machine: its address and digest, the number of its files, their bytes, the seconds."""

    address: str
    digest: str
    files: int
    bytes: int
    seconds: float


def fetch_model(address: str, to: Path) -> LocalModel:
    """Fetch a published model, verified by SHA-256; `to` exists only when it is complete.

    An interrupted fetch continues after the files that arrived. A `to` that holds this version already is verified
    and kept.

    Args:
        address: of a version (`s3://bucket/prefix/digest`), or of the place it was published to: the current one.
        to: the folder to make.

    Raises:
        DetoxError: nothing is published there, the store refuses or fails, a file is not what was published, the
            disk is full, or `to` holds something else.
    """
    started = time.monotonic()
    client = connect()
    with clear_errors(address):
        version, index = _resolve(client, Place.parse(address)) or _nothing_there(address)
        if to.exists():
            if not _holds(to, index):
                raise DetoxError("the folder exists and holds something else", place=str(to),
                                 remedy="remove it, or choose another one")
        else:
            _fetch_version(client, version, index, to)
    return LocalModel(str(version), index.digest, len(index.files), index.bytes, round(time.monotonic() - started, 2))


def resolve(address: str) -> Version:
    """The version that an address stands for now."""
    with clear_errors(address):
        version, index = _resolve(connect(), Place.parse(address)) or _nothing_there(address)
    return Version(index.digest, str(version), bytes=index.bytes, files=len(index.files))


def fetch_source(url: str) -> Path:
    """An S3 object, a prefix, or a published model, as a path in the cache.

    What changed in the store is fetched anew. Of a published Caikit folder the Hugging Face folder inside it is
    given.

    Raises:
        DetoxError: there is nothing, or the store refuses or fails.
    """
    place = Place.parse(url)
    client = connect()
    with clear_errors(url):
        if published := _resolve(client, place):
            version, index = published
            folder = cache_dir("s3") / index.digest
            fetch_model(str(version), folder)
            return folder / "artifacts" if ModelFolder(folder / "artifacts").config.exists() else folder
        return _fetch_plain(client, place)


def _resolve(client: Any, place: Place) -> tuple[Place, Index] | None:
    """The version at a place, or the current one below it; None where nothing is published."""
    index = read_index(client, place)
    if index is None:
        pointer = read_pointer(client, place)
        if pointer is None:
            return None
        place = place / pointer.digest
        index = read_index(client, place)
        if index is None:
            raise DetoxError("the version that the pointer names is gone", place=str(place),
                             remedy="publish the model again, or roll back to a version that exists")
    if place.key.rpartition("/")[2] != index.digest:
        raise DetoxError("the list of checksums does not belong to this address", place=str(place / INDEX),
                         remedy="publish the model again")
    return place, index


def _nothing_there(address: str) -> NoReturn:
    raise DetoxError("no model is published here", place=address,
                     remedy="check the address: `publish` prints it, of a version or of the place of all versions")


def _fetch_version(client: Any, version: Place, index: Index, to: Path) -> None:
    staging = to.parent / f".{to.name}.part"
    files = {name: staging / name for name in index.files}
    with _writing(staging, to):
        begun = _keep_only(staging, set(files.values()))
        for path in files.values():
            path.parent.mkdir(parents=True, exist_ok=True)
        for round_number in range(1, _ROUNDS + 1):
            try:
                _fetch_missing(client, version, index, files, staging)
                break
            except Exception as error:
                # What an earlier attempt left may be damaged where the machine went down; then it is fetched anew.
                again = may_pass(error) or (isinstance(error, _Damaged) and begun and round_number == 1)
                if round_number == _ROUNDS or not again:
                    raise
        (staging / INDEX).write_text(index.text(), "utf-8")
        staging.rename(to)


def _fetch_missing(client: Any, version: Place, index: Index, files: Mapping[str, Path], staging: Path) -> None:
    begun = {name for name, path in files.items() if path.with_name(path.name + PARTS_SUFFIX).exists()}
    missing = {name: path for name, path in files.items()
               if name in begun or not (path.is_file() and sha256_of(path) == index.files[name].sha256)}
    if begun or len(missing) < len(files):
        say(f"continuing an interrupted fetch: {len(files) - len(missing)} of {len(files)} files are here"
            + (f", {len(begun)} in part" if begun else ""))
    needed = sum(index.files[name].bytes for name in missing)
    _check_room(staging, needed - sum(files[name].stat().st_blocks * 512 for name in begun if files[name].is_file()))
    with transfers(client, part_size(index.largest), "fetching", needed) as running:
        for name, path in missing.items():
            file = index.files[name]
            running.download(version / name, path, file.bytes, file.sha256,
                             _checker(path, file.sha256, str(version / name)))


def _keep_only(staging: Path, wanted: set[Path]) -> bool:
    """Remove what an interrupted fetch of another version left; whether anything of this one is there."""
    lists = {path.with_name(path.name + PARTS_SUFFIX) for path in wanted}
    for path in staging.rglob("*"):
        if path.is_file() and path not in wanted | lists:
            path.unlink()
    return any(path.is_file() for path in wanted)


class _Damaged(DetoxError):
    """A file is not what its checksum says."""


def _checker(path: Path, expected: str, place: str) -> Callable[[], None]:
    def check() -> None:
        if sha256_of(path) != expected:
            path.unlink()
            raise _Damaged("the file in the store is not the one that was published (SHA-256 differs)", place=place,
                             remedy="publish the model again, or roll back to another version")
    return check


def _fetch_plain(client: Any, place: Place) -> Path:
    """Objects that we did not publish: identified by size and ETag."""
    try:
        head = client.head_object(Bucket=place.bucket, Key=place.key) if place.key else None
    except client.exceptions.ClientError as error:
        if not is_missing(error):
            raise
        head = None
    if head is not None:
        objects = {place.key.rpartition("/")[2]: (int(head["ContentLength"]), str(head["ETag"]).strip('"'))}
    else:
        objects = {name: found for name, found in listing(client, place).items() if not name.endswith("/")}
    if not objects:
        raise DetoxError("there is no object and no prefix of this name", place=str(place),
                         remedy="check the address and the bucket")
    Index.checked({"files": {name: {"sha256": etag, "bytes": size} for name, (size, etag) in objects.items()}},
                  str(place))
    folder = cache_dir("s3") / digest_of([endpoint_of(), str(place), objects])[:32]
    if not folder.exists():
        _fetch_objects(client, place, objects, folder, single=head is not None)
    return folder / next(iter(objects)) if head is not None else folder


def _fetch_objects(client: Any, place: Place, objects: dict[str, tuple[int, str]], folder: Path, single: bool) -> None:
    staging = folder.parent / f".{folder.name}.part"
    needed = sum(size for size, _ in objects.values())
    with _writing(staging, folder):
        _check_room(staging, needed)
        part = part_size(max(size for size, _ in objects.values()))
        with transfers(client, part, f"fetching {place}", needed) as running:
            for name, (size, etag) in objects.items():
                path = staging / name
                path.parent.mkdir(parents=True, exist_ok=True)
                running.download(place if single else place / name, path, size, etag, etag=etag)
        staging.rename(folder)


def _holds(folder: Path, index: Index) -> bool:
    return all((folder / name).is_file() and sha256_of(folder / name) == file.sha256
               for name, file in index.files.items())


def _check_room(folder: Path, needed: int) -> None:
    if shutil.disk_usage(folder).free < needed:
        raise OSError(errno.ENOSPC, "not enough room", str(folder))


class _writing:
    """Turns a full disk or missing rights into one clear error; a full disk gets its room back."""

    def __init__(self, staging: Path, to: Path) -> None:
        self._staging, self._to = staging, to

    def __enter__(self) -> None:
        self._staging.mkdir(parents=True, exist_ok=True)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, OSError):
            return
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            shutil.rmtree(self._staging, ignore_errors=True)
            raise DetoxError("the disk is full", place=str(self._to),
                             remedy="free some space, or choose another folder") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise DetoxError("cannot be written", place=str(self._to), remedy="check the rights") from error
