"""Can this login write to the store, and read back what it wrote?"""

from __future__ import annotations

import secrets
from collections.abc import Iterator

from llm_detox.doctor import Finding
from llm_detox.errors import DetoxError


def examine_store(url: str) -> Iterator[Finding]:
    """Write a small object below the URL, read it back, remove it.

    Args:
        url: `s3://bucket/prefix`, the recipe's `publish.url`.
    """
    from llm_detox.storage.s3 import Place, clear_errors, connect, endpoint_of

    place = Place.parse(url) / f".doctor-{secrets.token_hex(6)}"
    where, content = f"{url} at {endpoint_of() or 'AWS S3'}", secrets.token_bytes(16)
    try:
        client = connect()
        with clear_errors(url):
            client.put_object(Bucket=place.bucket, Key=place.key, Body=content)
            try:
                back = client.get_object(Bucket=place.bucket, Key=place.key)["Body"].read()
            finally:
                client.delete_object(Bucket=place.bucket, Key=place.key)
    except DetoxError as error:
        yield Finding("store", "missing", f"{error.place}: {error.message}", error.remedy)
        return
    if back == content:
        yield Finding("store", "ok", f"{where}: written, read back and removed")
    else:
        yield Finding("store", "missing", f"{where}: gives back something else than was written",
                      "look at what stands between: a proxy, a cache, a filter")
