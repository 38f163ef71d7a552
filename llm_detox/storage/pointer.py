"""The small objects of a published model as the store has them: the list of checksums, read, and the pointer, read,
moved and, where it is damaged, made anew of the versions that are there."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from llm_detox.errors import DetoxError
from llm_detox.progress import say
from llm_detox.storage.layout import INDEX, POINTER, PUBLISH_AGAIN, Index, Pointer, Version, is_digest
from llm_detox.storage.patience import error_code, pause_seconds
from llm_detox.storage.s3 import Place, is_missing

_ATTEMPTS = 8
_READS = 4
_LARGEST = 64 * 2**20  # bytes: a list of some hundred thousand files


@dataclass(frozen=True)
class SmallObject:
    """A small object, the ETag under which it was read, and the time of its writing (UTC)."""

    data: bytes
    etag: str
    written: datetime

    def value(self) -> Any:
        """Of its JSON.

        Raises:
            ValueError: it is something else, or larger than any that was written here.
        """
        if len(self.data) > _LARGEST:
            raise ValueError(f"it is larger than {_LARGEST} bytes")
        try:
            return json.loads(self.data.decode("utf-8"))
        except RecursionError:
            raise ValueError("it is nested too deeply") from None
        except ValueError:
            raise ValueError("it is not JSON") from None


class DamagedPointer(DetoxError):
    """`latest.json` is something else than a pointer; `etag` is the one under which it was read."""

    def __init__(self, fault: str, place: Place, etag: str) -> None:
        super().__init__(f"the pointer is damaged ({fault})", place=str(place / POINTER),
                         remedy="publish a model here again: that makes the pointer anew, with all versions that are "
                                "in the store")
        self.etag = etag


def read_index(client: Any, version: Place) -> Index | None:
    """The index of a version; None where there is none.

    Raises:
        DetoxError: it is damaged.
    """
    stored = _read(client, version / INDEX)
    return parsed_index(stored, version) if stored else None


def read_pointer(client: Any, place: Place) -> Pointer | None:
    """The pointer below a published URL; None where there is none.

    Raises:
        DamagedPointer: it is something else.
    """
    stored = _read(client, place / POINTER)
    if stored is None:
        return None
    try:
        return Pointer.checked(stored.value(), place, stored.etag)
    except ValueError as error:
        raise DamagedPointer(str(error), place, stored.etag) from None


def move_pointer(client: Any, place: Place, change: Callable[[Pointer | None], Pointer], *, mend: bool = False) -> None:
    """Replace the pointer by `change(old one)`; when somebody else moved it meanwhile, read again and repeat.

    Args:
        mend: where the old one is damaged, give `change` one with the versions that are in the store.

    Raises:
        DetoxError: the old one is damaged, or others kept moving it.
    """
    conditional = True
    for _ in range(_ATTEMPTS):
        old = _pointer_or_mended(client, place) if mend else read_pointer(client, place)
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


def _pointer_or_mended(client: Any, place: Place) -> Pointer | None:
    try:
        return read_pointer(client, place)
    except DamagedPointer as damaged:
        versions = _stored_versions(client, place)
        say(f"{damaged.place}: {damaged.message}; it is made anew with the {len(versions)} versions in the store")
        return Pointer("", "", versions, damaged.etag)


def _stored_versions(client: Any, place: Place) -> tuple[Version, ...]:
    """The whole versions below a place, the newest first: their lists of checksums were written last."""
    prefix = f"{place.key}/" if place.key else ""
    written: list[tuple[datetime, Version]] = []
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=place.bucket, Prefix=prefix, Delimiter="/"):
        for folder in page.get("CommonPrefixes", ()):
            digest = folder["Prefix"].removeprefix(prefix).rstrip("/")
            if is_digest(digest) and (version := _stored_version(client, place / digest)):
                written.append(version)
    return tuple(version for _, version in sorted(written, key=lambda one: one[0], reverse=True))


def _stored_version(client: Any, version: Place) -> tuple[datetime, Version] | None:
    stored, digest = _read(client, version / INDEX), version.key.rpartition("/")[2]
    try:
        index = parsed_index(stored, version) if stored else None
    except DetoxError:
        return None
    if stored is None or index is None or index.digest != digest:
        return None
    time_written = stored.written.astimezone(UTC).isoformat("T", "seconds")
    return stored.written, Version(digest, str(version), time_written, index.bytes, len(index.files))


def parsed_index(stored: SmallObject, version: Place) -> Index:
    place = str(version / INDEX)
    try:
        value = stored.value()
    except ValueError as error:
        raise DetoxError(f"the list of checksums is damaged ({error})", place=place, remedy=PUBLISH_AGAIN) from None
    return Index.checked(value, place)


def _read(client: Any, place: Place) -> SmallObject | None:
    """A small object, or the beginning of one that is too large; None where there is none."""
    from botocore.exceptions import HTTPClientError, IncompleteReadError

    since = time.monotonic()
    for attempt in range(1, _READS + 1):
        try:
            answer = client.get_object(Bucket=place.bucket, Key=place.key)
            data = answer["Body"].read(_LARGEST + 1)
            answer["Body"].read(1)  # at the end it is compared with the length that was announced
            return SmallObject(data, answer["ETag"], answer["LastModified"])
        except client.exceptions.ClientError as error:
            if is_missing(error):
                return None
            raise
        except (HTTPClientError, IncompleteReadError) as error:  # broken after the headers, where botocore gives up
            if attempt == _READS or not client.patience.is_left(since):
                raise
            client.patience.say_again(type(error).__name__, since)
            time.sleep(pause_seconds(attempt))
    return None
