"""The versions of a published model: list, go back, clean up."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from llm_detox.errors import DetoxError
from llm_detox.progress import say
from llm_detox.storage.checksums import INDEX, checked_index
from llm_detox.storage.pointer import Stored, move_pointer, read_json, read_pointer
from llm_detox.storage.publishing import listing
from llm_detox.storage.s3 import Place, clear_errors, connect, error_code

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
