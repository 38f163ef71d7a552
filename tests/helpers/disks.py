"""Disks that are full or cannot be written: small file systems of memory, where this user may mount them."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def disk(folder: Path, kibibytes: int) -> Iterator[Path]:
    """A file system of a size at a folder, which is made; the test is skipped where this user may not mount one."""
    folder.mkdir(parents=True, exist_ok=True)
    mounting = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kibibytes}k", "llm-detox-test", str(folder)],
                              capture_output=True, check=False)
    if mounting.returncode:
        pytest.skip("only root mounts file systems")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def make_read_only(folder: Path) -> None:
    """Of a `disk`: from now on nothing of it can be written, by root neither."""
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
