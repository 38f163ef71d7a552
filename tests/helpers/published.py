"""A folder like one that `convert` wrote, for tests that publish it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

MIB = 1024 * 1024


def make_model(folder: Path, seed: int = 0, size: int = 3 * MIB) -> Path:
    (folder / "artifacts").mkdir(parents=True)
    (folder / "config.yml").write_text(f"name: model {seed}\n")
    (folder / "manifest.json").write_text(json.dumps({"seconds": seed}))
    (folder / "artifacts" / "config.json").write_text("{}")
    (folder / "artifacts" / "empty.txt").write_text("")
    (folder / "artifacts" / "name with spaces ü+&.txt").write_text("text")
    (folder / "artifacts" / "model.safetensors").write_bytes(hashlib.sha256(b"x").digest() * (size // 32))
    return folder
