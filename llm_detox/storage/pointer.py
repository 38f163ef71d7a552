"""The pointer object: which version is current, and which others there are."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llm_detox.errors import DetoxError
from llm_detox.storage.s3 import Place, error_code, is_missing

POINTER = "latest.json"
_ATTEMPTS = 8
_READS = 4


@dataclass(frozen=True)
class Stored:
    """A small JSON object and the ETag under which it was read."""

    value: Any
    etag: str


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
        except BotoCoreError:  # the connection broke behind the headers, where botocore no longer repeats
            if attempt == _READS:
                raise
        except ValueError:
            raise DetoxError("damaged: it is not JSON", place=str(place), remedy="publish the model again") from None
    return None


def read_pointer(client: Any, place: Place) -> Stored | None:
    """The pointer below a published URL.

    Raises:
        DetoxError: it is damaged.
    """
    stored = read_json(client, place / POINTER)
    if stored and not (isinstance(stored.value, dict) and isinstance(stored.value.get("digest"), str)
                       and isinstance(stored.value.get("versions"), list)):
        raise DetoxError("the pointer is damaged", place=str(place / POINTER), remedy="publish the model again")
    return stored


def move_pointer(client: Any, place: Place, change: Callable[[dict[str, Any] | None], dict[str, Any]]) -> None:
    """Replace the pointer by `change(old value)`; when somebody else moved it meanwhile, read again and repeat.

    Raises:
        DetoxError: others kept moving it.
    """
    conditional = True
    for _ in range(_ATTEMPTS):
        old = read_pointer(client, place)
        condition = ({"IfMatch": old.etag} if old else {"IfNoneMatch": "*"}) if conditional else {}
        body = json.dumps(change(old.value if old else None), indent=2).encode()
        try:
            client.put_object(Bucket=place.bucket, Key=(place / POINTER).key, Body=body,
                              ContentType="application/json", CacheControl="no-cache", **condition)
            return
        except client.exceptions.ClientError as error:
            # Older stores have no conditional writes, and an older MinIO looks in vain for what should not be there.
            if error_code(error) == "NotImplemented" or (old is None and conditional and is_missing(error)):
                conditional = False  # the last writer wins there
            elif error_code(error) not in ("PreconditionFailed", "ConditionalRequestConflict", "412", "409"):
                raise
    raise DetoxError("others keep publishing here at the same time", place=str(place), remedy="try again later")
