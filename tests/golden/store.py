"""How outputs are stored: as text that can be read and compared, without what no two runs have in common."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from tests.golden.compare import DIGESTS

# Values under these keys are left out: times, rates, memory, and versions of packages.
VOLATILE_KEYS = frozenset({
    "seconds", "tokens_per_second", "memory_bytes", "versions", "code_version", "peft_version", "transformers_version"})
# In a manifest these give digests of files that hold times; their names stay.
MANIFEST_DIGESTS = frozenset({"files", "inputs"})
# PEFT writes a set here, in an order that changes from process to process.
UNORDERED_KEYS = frozenset({"target_modules"})
# The versions that reports and model cards name. The fingerprint of a fitted scorer: it is the digest of a safetensors
# file, whose metadata stand in an order of chance.
VOLATILE_TEXT = (
    (re.compile(r"\bngram-[0-9a-f]{16}\b"), "ngram-FINGERPRINT"),
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
        self.text(f"{name}.json", _pretty(_stable(value)) + "\n")

    def json_lines(self, name: str, path: Path) -> None:
        """Store a file of JSON lines."""
        lines = [json.dumps(_stable(json.loads(line)), ensure_ascii=False)
                 for line in path.read_text("utf-8").splitlines()]
        self.text(f"{name}.jsonl", "".join(f"{line}\n" for line in lines))

    def text(self, name: str, text: str) -> None:
        """Store a text."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(without_volatile(text), "utf-8")

    def digest(self, name: str, content: bytes) -> None:
        """Store the SHA-256 of what is too large or no text; one file holds all digests of the section."""
        self._digests[name] = hashlib.sha256(content).hexdigest()
        self.text(DIGESTS, json.dumps(self._digests, indent=1) + "\n")

    def value_digest(self, name: str, value: Any) -> None:
        """Store the SHA-256 of a JSON value."""
        self.digest(name, without_volatile(_pretty(_stable(value))).encode())

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
            if inside not in left_out:
                self._file(f"{name}/{inside}", path, hashed=inside in hashed)

    def _file(self, name: str, path: Path, *, hashed: bool) -> None:
        if path.suffix == ".safetensors":
            self.digest(name, path.read_bytes())
        elif hashed and path.suffix == ".json":
            self.value_digest(name, json.loads(path.read_text("utf-8")))
        elif hashed or path.suffix == ".html" or path.name == "tokenizer.json":
            self.digest(name, without_volatile(path.read_text("utf-8")).encode())
        elif path.name == "manifest.json":
            self.value(name.removesuffix(".json"), _manifest(json.loads(path.read_text("utf-8"))))
        elif path.suffix == ".json":
            self.value(name.removesuffix(".json"), json.loads(path.read_text("utf-8")))
        elif path.suffix == ".jsonl":
            self.json_lines(name.removesuffix(".jsonl"), path)
        else:
            self.text(name, path.read_text("utf-8"))


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


def _manifest(manifest: dict[str, Any]) -> dict[str, Any]:
    return {key: sorted(value) if key in MANIFEST_DIGESTS else value for key, value in manifest.items()}


def _pretty(value: Any, indent: str = "") -> str:
    """JSON with a line for each value; lists of plain values and short objects stand on one line."""
    line = json.dumps(value, ensure_ascii=False)
    parts = list(value.values() if isinstance(value, dict) else value) if isinstance(value, dict | list) else []
    if not any(isinstance(part, dict | list) for part in parts) and (isinstance(value, list) or len(line) < _ONE_LINE):
        return line
    deeper = f"{indent} "
    if isinstance(value, dict):
        lines = [f"{deeper}{json.dumps(key, ensure_ascii=False)}: {_pretty(part, deeper)}"
                 for key, part in value.items()]
        return "{\n" + ",\n".join(lines) + f"\n{indent}}}"
    return "[\n" + ",\n".join(f"{deeper}{_pretty(part, deeper)}" for part in value) + f"\n{indent}]"
