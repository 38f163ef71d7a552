"""What a run needs: of this machine, and of the store."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from importlib import util
from pathlib import Path

from llm_detox.doctor.finding import Finding
from llm_detox.errors import DetoxError
from llm_detox.recipe.addresses import ImageName

_DISK_GIB, _MEMORY_GIB = 15, 6
_PACKAGES = ("torch", "transformers", "peft", "trl", "kfp")


def examine_machine(name: str) -> Iterator[Finding]:
    """Packages, programs, memory and disk, for a run of the recipe of that name."""
    missing = [package for package in _PACKAGES if util.find_spec(package) is None]
    yield (Finding("packages", "missing", f"not installed: {', '.join(missing)}",
                   "make install; without a checkout, pip install 'llm-detox[workbench]'") if missing
           else Finding("packages", "ok", ", ".join(_PACKAGES)))
    yield _weed()
    yield _caikit()
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    yield (Finding("disk", "ok", f"{free:.0f} GiB free") if free >= _DISK_GIB
           else Finding("disk", "missing", f"{free:.1f} GiB free, a run needs {_DISK_GIB}", "free some space"))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    yield (Finding("memory", "ok", f"{memory:.0f} GiB") if memory >= _MEMORY_GIB
           else Finding("memory", "missing", f"{memory:.1f} GiB, a run of {name} needs {_MEMORY_GIB}",
                        "take a smaller model, or a larger machine"))


def _weed() -> Finding:
    from llm_detox.storage.seaweed import find_weed

    try:
        return Finding("S3 store", "ok", find_weed())
    except DetoxError as error:
        return Finding("S3 store", "missing", error.message, error.remedy)


def _caikit() -> Finding:
    from llm_detox.serve.local_stack import caikit_python

    try:
        return Finding("Caikit", "ok", str(caikit_python()))
    except DetoxError as error:
        return Finding("Caikit", "missing", error.message, error.remedy)


def examine_registry(url: str) -> Iterator[Finding]:
    """Begin an upload to a registry of images, and give it up.

    Args:
        url: `oci://registry/repository`, the recipe's `publish.url`.
    """
    from llm_detox.storage.registry import Registry

    try:
        with Registry(ImageName.parse(url), push=True) as registry:
            registry.require_push()
        yield Finding("registry", "ok", f"{url}: takes uploads")
    except DetoxError as error:
        yield Finding("registry", "missing", f"{error.place}: {error.message}", error.remedy)


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
        yield Finding("store", "missing", f"{where}: returns something else than was written",
                      "check for a proxy, a cache or a filter in between")
