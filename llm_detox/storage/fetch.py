"""Fetching: into a folder beside, every file checked against its SHA-256, then renamed in place."""

from __future__ import annotations

import errno
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from llm_detox.errors import DetoxError, clear_disk_errors
from llm_detox.progress import say
from llm_detox.runs.artifacts import ModelFolder
from llm_detox.runs.cache import cache_dir
from llm_detox.runs.folders import digest_of, own_folder, sha256_of, staging_of
from llm_detox.runs.locks import locked
from llm_detox.storage.layout import (
    INDEX,
    INNER_INDEX,
    LARGEST_OBJECT,
    PUBLISH_AGAIN,
    Index,
    LocalModel,
    Version,
    check_names,
    part_size,
)
from llm_detox.storage.patience import error_code, may_pass
from llm_detox.storage.pointer import read_index, read_pointer
from llm_detox.storage.publishing import listing
from llm_detox.storage.s3 import Place, clear_errors, connect, endpoint_of, is_missing
from llm_detox.storage.transfer import PARTS_SUFFIX, transfers

_ROUNDS = 3
_REMEDY = "choose another folder"


def fetch_model(address: str, to: Path) -> LocalModel:
    """Fetch a published model, verified by SHA-256; `to` exists only when it is complete.

    An interrupted fetch continues after the files that arrived. A `to` that holds this version already is verified
    and kept.

    Args:
        address: of a version (`s3://bucket/prefix/digest`), or of the place it was published to: the current one.
        to: the folder to make.

    Raises:
        DetoxError: nothing is published there, the store refuses or fails, a file is missing or not what was published,
            the disk is full or cannot be written, another process fetches to `to`, or it holds something else.
    """
    started = time.monotonic()
    client = connect()
    with clear_errors(address):
        version, index = _resolve(client, Place.parse(address)) or _nothing_there(address)
        if to.exists():
            _check_held(to, index)
        else:
            with clear_disk_errors(to, _REMEDY), locked(to):
                _fetch_or_check(client, version, index, to)
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
            with clear_disk_errors(folder, _REMEDY), locked(folder, wait=True):
                _fetch_or_check(client, version, index, folder)
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


def _fetch_or_check(client: Any, version: Place, index: Index, to: Path) -> None:
    if to.exists():
        _check_held(to, index)
    else:
        _fetch_version(client, version, index, to)


def _fetch_version(client: Any, version: Place, index: Index, to: Path) -> None:
    _check_stored(client, version, index)
    staging = staging_of(to)
    files = {name: staging / name for name in index.files}
    with _writing(staging):
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
                if round_number == _ROUNDS or client.patience.over or not again:
                    raise
        (staging / INDEX).write_text(index.text(), "utf-8")
        staging.rename(to)


def _check_stored(client: Any, version: Place, index: Index) -> None:
    """Look for each file in the store, before there is room made for it.

    The sizes in the list of checksums are not covered by its digest; those of the store must be the same.
    """
    from botocore.exceptions import ClientError

    try:
        there = listing(client, version)
    except ClientError as error:
        if error_code(error) in ("AccessDenied", "403"):  # who may only read learns it from each object
            return
        raise
    for name, file in index.files.items():
        size = there[name][0] if name in there else None
        if size != file.bytes:
            fault = "the file is missing in the store" if size is None else (
                f"the file has {size} bytes in the store, and {file.bytes} in the list of checksums")
            raise DetoxError(fault, place=str(version / name), remedy=PUBLISH_AGAIN)


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
    """Remove links, and what an interrupted fetch of another version left; whether anything of this one is there."""
    lists = {path.with_name(path.name + PARTS_SUFFIX) for path in wanted}
    for path in sorted(staging.rglob("*"), reverse=True):  # what is in a folder before it
        if path.is_symlink() or (path.is_file() and path not in wanted | lists):
            path.unlink()
        elif path.is_dir() and (path in wanted | lists or not any(path.iterdir())):
            shutil.rmtree(path)
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
        objects = {name: one for name, one in listing(client, place).items() if not name.endswith("/")}
    _check_objects(objects, place)
    folder = cache_dir("s3") / digest_of([endpoint_of(), str(place), objects])[:32]
    with clear_disk_errors(folder, _REMEDY), locked(folder, wait=True):
        if not folder.exists():
            _fetch_objects(client, place, objects, folder, single=head is not None)
    _check_folder(folder, {name: size for name, (size, _) in objects.items()})
    return folder / next(iter(objects)) if head is not None else folder


def _check_objects(objects: Mapping[str, tuple[int, str]], place: Place) -> None:
    """Look whether the objects of a prefix can be files of a folder."""
    if not objects:
        raise DetoxError("there is no object and no prefix of this name", place=str(place),
                         remedy="check the address and the bucket")
    try:
        check_names(objects)
    except ValueError as error:
        raise DetoxError(f"the objects cannot be files of a folder: {error}", place=str(place),
                         remedy="name one object, or give them other names") from None
    if (largest := max(size for size, _ in objects.values())) > LARGEST_OBJECT:
        raise DetoxError(f"an object of {largest} bytes cannot be", place=str(place), remedy="look at the store's log")


def _fetch_objects(client: Any, place: Place, objects: dict[str, tuple[int, str]], folder: Path, single: bool) -> None:
    staging = staging_of(folder)
    needed = sum(size for size, _ in objects.values())
    with _writing(staging):
        _keep_only(staging, {staging / name for name in objects})
        _check_room(staging, needed)
        part = part_size(max(size for size, _ in objects.values()))
        with transfers(client, part, f"fetching {place}", needed) as running:
            for name, (size, etag) in objects.items():
                path = staging / name
                path.parent.mkdir(parents=True, exist_ok=True)
                running.download(place if single else place / name, path, size, etag, etag=etag)
        staging.rename(folder)


def _check_held(folder: Path, index: Index) -> None:
    """Look whether a folder holds a version and nothing else."""
    lists = [folder / name for name in (INDEX, INNER_INDEX) if (folder / name).exists()]
    _check_folder(folder, {name: file.bytes for name, file in index.files.items()},
                  *(path for path in lists if _is_list_of(path, index)))
    for name, file in index.files.items():
        if sha256_of(folder / name) != file.sha256:
            raise _other(folder, f"{name} is not the file that was published")


def _check_folder(folder: Path, sizes: Mapping[str, int], *beside: Path) -> None:
    """Compare names and sizes of all that lies in a folder."""
    there = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*")
             if path not in beside and (path.is_symlink() or not path.is_dir())}
    for name in sorted({*there, *sizes}):
        if name not in sizes:
            raise _other(folder, f"{name} was not published with it")
        if name not in there or not there[name].is_file() or there[name].stat().st_size != sizes[name]:
            raise _other(folder, f"{name} is missing, or of another size")


def _is_list_of(path: Path, index: Index) -> bool:
    try:
        return Index.checked(json.loads(path.read_text("utf-8")), str(path)) == index
    except (OSError, ValueError, RecursionError, DetoxError):
        return False


def _other(folder: Path, fault: str) -> DetoxError:
    return DetoxError(f"the folder exists and holds something else: {fault}", place=str(folder),
                      remedy="remove it, or choose another one")


def _check_room(folder: Path, needed: int) -> None:
    if shutil.disk_usage(folder).free < needed:
        raise OSError(errno.ENOSPC, "not enough room", str(folder))


@contextmanager
def _writing(staging: Path) -> Iterator[None]:
    """A folder for what arrives; a full disk gets its room back."""
    if not own_folder(staging):
        staging.mkdir(parents=True)
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            shutil.rmtree(staging, ignore_errors=True)
        raise
