"""How outputs are stored: as text that can be read and compared, without what no two runs have in common."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from tests.golden.compare import DIGESTS

REPOSITORY = Path(__file__).resolve().parents[2]

# Values under these keys are left out: times, rates, memory, versions of packages; digests of what holds such values
# (a judge's fingerprint), or of a recipe's whole sections (a key that moves changes them; `recipe show` is stored).
VOLATILE_KEYS = frozenset({
    "seconds", "tokens_per_second", "memory_bytes", "versions", "code_version", "peft_version", "transformers_version",
    "fingerprint", "settings_digest", "settings"})
# In a manifest these give digests of files that hold times; their names stay.
MANIFEST_DIGESTS = frozenset({"files", "inputs"})
# PEFT writes a set here, in an order that changes from process to process.
UNORDERED_KEYS = frozenset({"target_modules"})
# The versions that reports and model cards name; and the fingerprint of a fitted scorer: the digest of a safetensors
# file, whose metadata stand in an order of chance. A rehearsal's data lie in a folder with the digest of its recipe.
VOLATILE_TEXT = (
    (re.compile(r"\bcache/tiny/data-[0-9a-f]{12}\b"), "cache/tiny/data-DIGEST"),
    (re.compile(r"\bngram-[0-9a-f]{16}(?:-r\d+)?\b"), "ngram-FINGERPRINT"),
    (re.compile(r"(Made with llm-detox) [\w.+]+, python .*"), r"\1 and others"),
    (re.compile(r"(Made with llm-detox) [\w.+]+"), r"\1"))
_ONE_LINE = 120


class Store:
    """A section's folder of outputs.

    Args:
        folder: where the files are written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._digests: dict[str, str] = {}

    def value(self, name: str, value: Any) -> None:
        """Store a JSON value, its keys in their order."""
        self.text(f"{name}.json", _json(value))

    def text(self, name: str, text: str) -> None:
        """Store a text."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(without_volatile(text), "utf-8")

    def digest(self, name: str, content: str | bytes) -> None:
        """Store the SHA-256 of what is too large or no text; one file holds all digests of the section."""
        data = without_volatile(content).encode() if isinstance(content, str) else content
        self._digests[name] = hashlib.sha256(data).hexdigest()
        self.text(DIGESTS, json.dumps(self._digests, indent=1) + "\n")

    def value_digest(self, name: str, value: Any) -> None:
        """Store the SHA-256 of a JSON value."""
        self.digest(name, _json(value))

    def step(self, name: str, folder: Path, *, left_out: Collection[str] = (), hashed: Collection[str] = ()) -> None:
        """Store a step's output folder: text files as they are, of the others the digests.

        Args:
            name: in the store.
            folder: what the step wrote.
            left_out: paths in it that are not stored.
            hashed: paths in it of which the digest is enough.
        """
        for path in sorted(file for file in folder.rglob("*") if file.is_file()):
            inside = path.relative_to(folder).as_posix()
            if inside in left_out:
                continue
            if path.suffix == ".safetensors":
                self.digest(f"{name}/{inside}", path.read_bytes())
            elif inside in hashed or path.suffix == ".html" or path.name == "tokenizer.json":
                self.digest(f"{name}/{inside}", _content(path))
            else:
                self.text(f"{name}/{inside}", _content(path))


def _content(path: Path) -> str:
    """The text of a file, without the volatile keys where it is JSON."""
    text = path.read_text("utf-8")
    if path.name == "manifest.json":
        manifest = json.loads(text)
        return _json({key: sorted(value) if key in MANIFEST_DIGESTS else value for key, value in manifest.items()})
    if path.suffix == ".json":
        return _json(json.loads(text))
    if path.suffix == ".jsonl":
        records = [json.loads(line) for line in text.split("\n") if line]  # a text may hold other line separators
        return "".join(json.dumps(_stable(record), ensure_ascii=False) + "\n" for record in records)
    return text


def without_volatile(text: str) -> str:
    """The text without versions and fingerprints, and with paths relative to the capture's folder."""
    text = text.replace(f"{Path.cwd()}/", "")
    for pattern, replacement in VOLATILE_TEXT:
        text = pattern.sub(replacement, text)
    return text


def _stable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: sorted(part) if key in UNORDERED_KEYS and isinstance(part, list) else _stable(part)
                for key, part in value.items() if key not in VOLATILE_KEYS}
    return [_stable(part) for part in value] if isinstance(value, list) else value


def _json(value: Any) -> str:
    return _pretty(_stable(value)) + "\n"


def _pretty(value: Any, indent: str = "") -> str:
    """JSON with a line for each value; lists of plain values and short objects stand on one line."""
    line = json.dumps(value, ensure_ascii=False)
    if not isinstance(value, dict | list):
        return line
    parts = value.values() if isinstance(value, dict) else value
    if not any(isinstance(part, dict | list) for part in parts) and (isinstance(value, list) or len(line) < _ONE_LINE):
        return line
    deeper = f"{indent} "
    if isinstance(value, dict):
        lines = [f"{deeper}{json.dumps(key, ensure_ascii=False)}: {_pretty(part, deeper)}"
                 for key, part in value.items()]
        return "{\n" + ",\n".join(lines) + f"\n{indent}}}"
    return "[\n" + ",\n".join(f"{deeper}{_pretty(part, deeper)}" for part in value) + f"\n{indent}]"
