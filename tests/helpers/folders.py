"""Folders compared."""

from __future__ import annotations

from pathlib import Path


def same(a: Path, b: Path) -> bool:
    files = {path.relative_to(a) for path in a.rglob("*") if path.is_file()}
    return all((a / name).read_bytes() == (b / name).read_bytes() for name in files)
