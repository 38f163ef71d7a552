"""Publishing, and the versions of a model.

All files of a version are sent first and verified, then its index; the pointer is moved last. Published versions are
listed, gone back to and cleaned up here."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from llm_detox.errors import DetoxError, UsageError, clear_disk_errors
from llm_detox.progress import say
from llm_detox.recipe.addresses import check_publish_url
from llm_detox.runs.folders import check_sums
from llm_detox.storage.layout import (
    INDEX,
    INNER_INDEX,
    MEBIBYTE,
    FileSum,
    Index,
    Pointer,
    Publication,
    Version,
    part_size,
    sum_folder,
)
from llm_detox.storage.patience import error_code, may_pass
from llm_detox.storage.pointer import DamagedPointer, move_pointer, read_index, read_pointer
from llm_detox.storage.s3 import Place, clear_errors, connect
from llm_detox.storage.transfer import transfers

_LOOK_BACK = 3
_ROUNDS = 3
_COPY_FROM = MEBIBYTE  # smaller files are sent sooner than they are looked up
_INNER = INNER_INDEX.removesuffix(INDEX)
_UNFINISHED = timedelta(days=1)


@dataclass(frozen=True)
class ListedVersion(Version):
    """A version, and whether it is the one that the pointer names."""

    current: bool = False


def publish(folder: Path, url: str) -> Publication:
    """Put a folder into the store under its content address and make it the current version.

    Only files that the store lacks are sent; what an earlier version holds is copied inside the store. A failure
    leaves the old version current, and a second call continues after the files that arrived. A list of checksums or a
    pointer that was damaged is written anew.

    Args:
        folder: what to publish, such as the output of `convert`.
        url: `s3://bucket/prefix`, below which versions and the pointer lie.

    Raises:
        DetoxError: the folder is missing, empty or no longer what its step wrote, or the store refuses, fails or holds
            something else after all.
    """
    started, place = time.monotonic(), _publishable(url)
    client = connect()
    with clear_disk_errors(folder, "publish another folder"):
        part = part_size(max((path.stat().st_size for path in folder.rglob("*") if path.is_file()), default=0))
        sums = sum_folder(folder, part)
    check_sums(folder, {name: one.sha256 for name, one in sums.items()})
    index = Index.of(sums)
    version = place / index.digest
    with clear_errors(version), clear_disk_errors(folder, "publish another folder"):
        sent, copied = _fill(client, folder, version, place, sums, part)
        _put_index(client, version, index)
        now = datetime.now(UTC).isoformat("T", "seconds")
        newest = Version(index.digest, str(version), now, index.bytes, len(sums))
        move_pointer(client, place, lambda old: _with_version(old, newest), mend=True)
    kept = len(sums) - sent - copied
    say(f"published {version}: {sent} files sent, {copied} copied, {kept} already there")
    return Publication(str(version), str(place), index.digest, len(sums), index.bytes, sent, copied, kept,
                       round(time.monotonic() - started, 2))


def versions(url: str) -> list[ListedVersion]:
    """All versions, newest first.

    Raises:
        DetoxError: nothing is published there, or the store fails.
    """
    with clear_errors(url):
        pointer = _pointer(connect(), Place.parse(url))
    return [ListedVersion(**asdict(one), current=one.digest == pointer.digest) for one in pointer.versions]


def rollback(url: str, digest: str | None = None) -> Version:
    """Make an older version current: the named one (a beginning of its digest will do), else the one before.

    Raises:
        DetoxError: there is no such version, or it is incomplete.
    """
    place = Place.parse(url)
    client = connect()
    with clear_errors(url):
        pointer = _pointer(client, place)
        version = _pick(pointer, digest, url)
        _check_complete(client, place / version.digest)
        move_pointer(client, place, lambda old: replace(
            old or pointer, digest=version.digest, address=version.address))
    say(f"current is now {version.address}")
    return version


def prune(url: str, keep: int = 3) -> list[str]:
    """Remove all but the newest `keep` versions and the current one; returns the digests removed.

    Parts of uploads that were begun more than a day ago and never completed go, too.
    """
    place = Place.parse(url)
    client = connect()
    with clear_errors(url):
        pointer = _pointer(client, place)
        kept = {one.digest for one in pointer.versions[:max(keep, 1)]} | {pointer.digest}
        removed = [one.digest for one in pointer.versions if one.digest not in kept]
        # First out of the list, then out of the store: no reader is led to a version that is going.
        move_pointer(client, place, lambda old: replace(old or pointer, versions=tuple(
            one for one in (old or pointer).versions if one.digest not in removed)))
        for digest in removed:
            _delete(client, place / digest)
        _abort_old_uploads(client, place)
    return removed


def listing(client: Any, place: Place) -> dict[str, tuple[int, str]]:
    """Name below the place -> size in bytes and ETag."""
    objects: dict[str, tuple[int, str]] = {}
    prefix = f"{place.key}/" if place.key else ""
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=place.bucket, Prefix=prefix):
        for item in page.get("Contents", ()):
            objects[item["Key"].removeprefix(prefix)] = (item["Size"], item["ETag"].strip('"'))
    return objects


def _publishable(url: str) -> Place:
    try:
        return Place.parse(check_publish_url(url))
    except ValueError as error:
        raise UsageError(str(error), place=url, remedy="write it as s3://bucket/prefix") from None


def _fill(client: Any, folder: Path, version: Place, place: Place, sums: Mapping[str, FileSum],
          part: int) -> tuple[int, int]:
    """Bring all files of the version into the store and verify them; returns how many were sent and copied."""
    sent: set[str] = set()
    copied: set[str] = set()
    for round_number in range(1, _ROUNDS + 1):
        there = listing(client, version)
        missing = {name: one for name, one in sums.items() if there.get(name) != (one.bytes, one.etag)}
        copies = _copy_sources(client, place, missing)
        try:
            _transfer(client, folder, version, missing, copies, part)
        except Exception as error:
            # What arrived stays, so another round is short; but no round helps against a refusal or a full disk.
            if round_number == _ROUNDS or client.patience.over or not may_pass(error):
                raise
        else:
            sent |= set(missing) - set(copies)
            copied |= set(copies)
            break
    _verify(client, version, sums)
    return len(sent), len(copied)


def _put_index(client: Any, version: Place, index: Index) -> None:
    """The list of checksums, and a copy in the Hugging Face folder of a Caikit model; it says that all is there."""
    inner = (INNER_INDEX,) if any(name.startswith(_INNER) for name in index.files) else ()
    for name in (*inner, INDEX):
        client.put_object(Bucket=version.bucket, Key=(version / name).key, Body=index.text().encode(),
                          ContentType="application/json")


def _transfer(client: Any, folder: Path, version: Place, missing: Mapping[str, FileSum],
              copies: Mapping[str, Place], part: int) -> None:
    with transfers(client, part, "publishing", sum(one.bytes for one in missing.values())) as running:
        for name, one in missing.items():
            if name in copies:
                running.copy(copies[name], version / name, one)
            else:
                running.upload(folder / name, version / name, one)


def _copy_sources(client: Any, place: Place, missing: Mapping[str, FileSum]) -> dict[str, Place]:
    """Where the store holds the content of missing files already, undamaged, in one of the last versions."""
    wanted = {name: one for name, one in missing.items() if one.bytes >= _COPY_FROM}
    try:
        pointer = read_pointer(client, place) if wanted else None
    except DamagedPointer:
        pointer = None
    held: dict[tuple[str, int, str], Place] = {}
    for version in (pointer.versions if pointer else ())[:_LOOK_BACK]:
        older = place / version.digest
        try:
            index = read_index(client, older)
        except DetoxError:  # a version that is damaged has nothing to give
            continue
        there = listing(client, older) if index else {}
        for name, file in (index.files if index else {}).items():
            if name in there:
                held[file.sha256, *there[name]] = older / name
    return {name: held[one.sha256, one.bytes, one.etag]
            for name, one in wanted.items() if (one.sha256, one.bytes, one.etag) in held}


def _verify(client: Any, version: Place, sums: Mapping[str, FileSum]) -> None:
    """Compare what the store holds: by its own checksum (ETag), else by reading the object back."""
    there = listing(client, version)
    for name, one in sums.items():
        size, etag = there.get(name, (-1, ""))
        if size == one.bytes and etag != one.etag:  # encrypted at rest, or another way to make ETags
            if _read_back(client, version / name) == one.sha256:
                continue
            size = -1
        if size != one.bytes:
            raise DetoxError("the store does not hold what was sent", place=str(version / name),
                             remedy="publish again; the current version was not touched")


def _read_back(client: Any, place: Place) -> str:
    """The SHA-256 of an object, in hex."""
    digest = hashlib.sha256()
    for block in client.get_object(Bucket=place.bucket, Key=place.key)["Body"].iter_chunks(MEBIBYTE):
        digest.update(block)
    return digest.hexdigest()


def _with_version(old: Pointer | None, newest: Version) -> Pointer:
    others = (one for one in (old.versions if old else ()) if one.digest != newest.digest)
    return Pointer(newest.digest, newest.address, (newest, *others))


def _pointer(client: Any, place: Place) -> Pointer:
    pointer = read_pointer(client, place)
    if pointer is None:
        raise DetoxError("nothing is published here", place=str(place), remedy="check the address, or publish first")
    return pointer


def _pick(pointer: Pointer, digest: str | None, url: str) -> Version:
    """The version whose digest begins so; without one, the version before the current one."""
    if digest is None:
        digests = [one.digest for one in pointer.versions]
        older = digests.index(pointer.digest) + 1 if pointer.digest in digests else len(digests) + 1
        candidates = pointer.versions[older:older + 1]
    else:
        candidates = tuple(one for one in pointer.versions if one.digest.startswith(digest))
    if len(candidates) != 1:
        raise DetoxError("there is no older version" if digest is None else f"no single version begins with {digest!r}",
                         place=url, remedy="list the versions with their digests")
    return candidates[0]


def _check_complete(client: Any, version: Place) -> None:
    index, there = read_index(client, version), listing(client, version)
    if index is None or any(there.get(name, (-1, ""))[0] != file.bytes for name, file in index.files.items()):
        raise DetoxError("this version is incomplete in the store", place=str(version),
                         remedy="choose another version, or publish it again")


def _abort_old_uploads(client: Any, place: Place) -> None:
    from botocore.exceptions import ClientError

    try:
        answer = client.list_multipart_uploads(Bucket=place.bucket, Prefix=f"{place.key}/" if place.key else "")
    except ClientError as error:
        if error_code(error) in ("NotImplemented", "AccessDenied"):
            return
        raise
    for one in answer.get("Uploads", ()):
        if datetime.now(UTC) - one["Initiated"] > _UNFINISHED:
            client.abort_multipart_upload(Bucket=place.bucket, Key=one["Key"], UploadId=one["UploadId"])


def _delete(client: Any, version: Place) -> None:
    client.delete_object(Bucket=version.bucket, Key=(version / INDEX).key)
    for name in listing(client, version):
        client.delete_object(Bucket=version.bucket, Key=(version / name).key)
