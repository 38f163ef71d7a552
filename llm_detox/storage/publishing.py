"""Publishing and the versions of a model.

All files of a version are sent first and verified, then its index; the pointer is moved last. Published versions are
listed, gone back to and cleaned up here."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from llm_detox.errors import DetoxError
from llm_detox.progress import say
from llm_detox.storage.layout import (
    INDEX,
    MEBIBYTE,
    FileSum,
    Stored,
    checked_index,
    digest_of_index,
    index_of,
    move_pointer,
    part_size,
    read_json,
    read_pointer,
    sum_folder,
)
from llm_detox.storage.s3 import Place, clear_errors, connect, error_code, may_pass
from llm_detox.storage.transfer import transfers

_LOOK_BACK = 3
_ROUNDS = 3
_COPY_FROM = MEBIBYTE  # smaller files are sent sooner than they are looked up


def publish(folder: Path, url: str) -> dict[str, Any]:
    """Put a folder into the store under its content address and make it the current version.

    Only files that the store lacks are sent; what an earlier version holds is copied inside the store. A failure
    leaves the old version current, and a second call goes on behind the files that arrived.

    Args:
        folder: what to publish, such as the output of `convert`.
        url: `s3://bucket/prefix`, below which versions and the pointer lie.

    Returns:
        `address` (`s3://bucket/prefix/digest`), `pointer`, `digest`, `files`, `bytes`, `sent`, `copied`, `kept`
        (numbers of files) and `seconds`.

    Raises:
        DetoxError: the folder is missing or empty, or the store refuses, fails or holds something else after all.
    """
    started, place = time.monotonic(), Place.parse(url)
    client = connect()
    largest = max((path.stat().st_size for path in folder.rglob("*") if path.is_file()), default=0)
    part = part_size(largest)
    sums = sum_folder(folder, part)
    index = index_of(sums)
    digest = digest_of_index(index)
    version = place / digest
    with clear_errors(version):
        sent, copied = _fill(client, folder, version, place, sums, part)
        _put_json(client, version / INDEX, index)
        entry = {"digest": digest, "address": str(version), "published": datetime.now(UTC).isoformat("T", "seconds"),
                 "bytes": sum(one.bytes for one in sums.values()), "files": len(sums)}
        move_pointer(client, place, lambda old: _with_version(old, entry))
    seconds = round(time.monotonic() - started, 2)
    say(f"published {version}: {sent} files sent, {copied} copied, {len(sums) - sent - copied} there already")
    return {"address": str(version), "pointer": str(place), "digest": digest, "files": len(sums),
            "bytes": entry["bytes"], "sent": sent, "copied": copied, "kept": len(sums) - sent - copied,
            "seconds": seconds}


def listing(client: Any, place: Place) -> dict[str, tuple[int, str]]:
    """Name below the place -> size in bytes and ETag."""
    found: dict[str, tuple[int, str]] = {}
    prefix = f"{place.key}/" if place.key else ""
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=place.bucket, Prefix=prefix):
        for item in page.get("Contents", ()):
            found[item["Key"].removeprefix(prefix)] = (item["Size"], item["ETag"].strip('"'))
    return found


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
            if round_number == _ROUNDS or not may_pass(error):
                raise
        else:
            sent |= set(missing) - set(copies)
            copied |= set(copies)
            break
    _verify(client, version, sums)
    return len(sent), len(copied)


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
    pointer = read_pointer(client, place) if wanted else None
    held: dict[tuple[str, int, str], Place] = {}
    for entry in (pointer.value["versions"] if pointer else [])[:_LOOK_BACK]:
        older = place / str(entry["digest"])
        stored = read_json(client, older / INDEX)
        there = listing(client, older) if stored else {}
        for name, file in (stored.value["files"] if stored else {}).items():
            if name in there:
                held[file["sha256"], *there[name]] = older / name
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
    found = hashlib.sha256()
    for block in client.get_object(Bucket=place.bucket, Key=place.key)["Body"].iter_chunks(MEBIBYTE):
        found.update(block)
    return found.hexdigest()


def _with_version(old: dict[str, Any] | None, entry: dict[str, Any]) -> dict[str, Any]:
    others = [one for one in (old or {}).get("versions", []) if one["digest"] != entry["digest"]]
    return {"schema": 1, "digest": entry["digest"], "address": entry["address"], "versions": [entry, *others]}


def _put_json(client: Any, place: Place, value: object) -> None:
    client.put_object(Bucket=place.bucket, Key=place.key, Body=json.dumps(value, indent=2, sort_keys=True).encode(),
                      ContentType="application/json")


_UNFINISHED = timedelta(days=1)


def versions(url: str) -> list[dict[str, Any]]:
    """All versions, newest first: `digest`, `address`, `published`, `bytes`, `files`, and `current` (true for one).

    Raises:
        DetoxError: nothing is published there, or the store fails.
    """
    with clear_errors(url):
        value = _pointer(connect(), Place.parse(url)).value
    return [{**entry, "current": entry["digest"] == value["digest"]} for entry in value["versions"]]


def rollback(url: str, digest: str | None = None) -> dict[str, Any]:
    """Make an older version current: the named one (a beginning of its digest will do), else the one before.

    Raises:
        DetoxError: there is no such version, or it is incomplete.
    """
    place = Place.parse(url)
    client = connect()
    with clear_errors(url):
        value = _pointer(client, place).value
        entry = _pick(value, digest, url)
        _check_complete(client, place / str(entry["digest"]))
        move_pointer(client, place, lambda old: {
            **(old or value), "digest": entry["digest"], "address": entry["address"]})
    say(f"current is now {entry['address']}")
    return dict(entry)


def prune(url: str, keep: int = 3) -> list[str]:
    """Remove all but the newest `keep` versions and the current one; returns the digests removed.

    Parts of uploads that were begun more than a day ago and never completed go, too.
    """
    place = Place.parse(url)
    client = connect()
    with clear_errors(url):
        value = _pointer(client, place).value
        kept = {entry["digest"] for entry in value["versions"][:max(keep, 1)]} | {value["digest"]}
        removed = [entry["digest"] for entry in value["versions"] if entry["digest"] not in kept]
        # First out of the list, then out of the store: no reader is led to a version that is going.
        move_pointer(client, place, lambda old: {**(old or value), "versions": [
            entry for entry in (old or value)["versions"] if entry["digest"] not in removed]})
        for digest in removed:
            _delete(client, place / str(digest))
        _abort_old_uploads(client, place)
    return removed


def _pointer(client: Any, place: Place) -> Stored:
    stored = read_pointer(client, place)
    if stored is None:
        raise DetoxError("nothing is published here", place=str(place), remedy="check the address, or publish first")
    return stored


def _pick(value: dict[str, Any], digest: str | None, url: str) -> dict[str, Any]:
    entries: list[dict[str, Any]] = value["versions"]
    if digest is None:
        current = next((i for i, entry in enumerate(entries) if entry["digest"] == value["digest"]), len(entries))
        found = entries[current + 1:current + 2]
    else:
        found = [entry for entry in entries if entry["digest"].startswith(digest)]
    if len(found) != 1:
        raise DetoxError("there is no older version" if digest is None else f"no single version begins with {digest!r}",
                         place=url, remedy="list the versions with their digests")
    return found[0]


def _check_complete(client: Any, version: Place) -> None:
    stored = read_json(client, version / INDEX)
    there = listing(client, version)
    files = checked_index(stored.value, str(version))["files"] if stored else {"": {"bytes": 0}}
    if any(there.get(name, (-1, ""))[0] != file["bytes"] for name, file in files.items()):
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
