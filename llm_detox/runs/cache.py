"""The cache: things that are made once and kept, each by one process at a time."""

from __future__ import annotations

import glob
import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

from llm_detox.errors import clear_disk_errors
from llm_detox.runs.locks import locked

_REMEDY = "set LLM_DETOX_CACHE to another folder"


def cache_dir(*parts: str) -> Path:
    """`$LLM_DETOX_CACHE`, else the XDG cache folder; the folder is made."""
    root = os.environ.get("LLM_DETOX_CACHE")
    base = Path(root) if root else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "llm-detox"
    folder = base.joinpath(*parts)
    with clear_disk_errors(folder, _REMEDY):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def made_once(target: Path, make: Callable[[Path], None]) -> Path:
    """A file or folder of the cache, made where it is missing: by one process, while others that want it wait.

    Args:
        target: where it belongs.
        make: called with a new path beside, to write it there.

    Raises:
        DetoxError: the disk is full or cannot be written; and what `make` raises. Then nothing is left.
    """
    if target.exists():
        return target
    with clear_disk_errors(target, _REMEDY), locked(target, wait=True) as alone:
        if target.exists():
            return target
        if alone:  # what a killed process left
            for left in target.parent.glob(f".{glob.escape(target.name)}.*.part"):
                _remove(left)
        staging = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
        try:
            make(staging)
            if not target.exists():  # where there are no locks, another process may have been faster
                staging.rename(target)
        finally:
            _remove(staging)
    return target


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
