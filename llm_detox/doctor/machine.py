"""What a run on this machine needs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from importlib import util
from pathlib import Path

from llm_detox.doctor import Finding
from llm_detox.errors import DetoxError
from llm_detox.recipe import Recipe

_DISK_GIB, _MEMORY_GIB = 15, 6
_PACKAGES = ("torch", "transformers", "peft", "trl", "kfp")


def examine_machine(recipe: Recipe) -> Iterator[Finding]:
    """Packages, programs, memory and disk."""
    missing = [name for name in _PACKAGES if util.find_spec(name) is None]
    yield (Finding("packages", "missing", f"not installed: {', '.join(missing)}", "make install") if missing
           else Finding("packages", "ok", ", ".join(_PACKAGES)))
    yield _weed()
    yield _caikit()
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    yield (Finding("disk", "ok", f"{free:.0f} GiB free") if free >= _DISK_GIB
           else Finding("disk", "missing", f"{free:.1f} GiB free, a run wants {_DISK_GIB}", "free some space"))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    yield (Finding("memory", "ok", f"{memory:.0f} GiB") if memory >= _MEMORY_GIB
           else Finding("memory", "missing", f"{memory:.1f} GiB, a run of {recipe.name} wants {_MEMORY_GIB}",
                        "take a smaller model, or a larger machine"))


def _weed() -> Finding:
    from llm_detox.storage.seaweed import find_weed

    try:
        return Finding("S3 store", "ok", find_weed())
    except DetoxError as error:
        return Finding("S3 store", "missing", error.message, error.remedy)


def _caikit() -> Finding:
    from llm_detox.deploy.topology import caikit_python

    try:
        return Finding("Caikit", "ok", str(caikit_python()))
    except DetoxError as error:
        return Finding("Caikit", "missing", error.message, error.remedy)
