"""Publishing: all files of a version first, verified, then its index, and the pointer last."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llm_detox.errors import DetoxError
from llm_detox.progress import say
from llm_detox.storage.checksums import INDEX, MEBIBYTE, FileSum, digest_of_index, index_of, part_size, sum_folder
from llm_detox.storage.pointer import move_pointer, read_json, read_pointer
from llm_detox.storage.s3 import Place, clear_errors, connect, may_pass
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
