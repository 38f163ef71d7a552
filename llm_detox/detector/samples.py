"""Some of the live texts, kept in the record format of an evaluation, so that `llm-detox evaluate` can judge them.

People wrote to the model and did not ask for a record: without `with_text` only what was found is kept.
"""

from __future__ import annotations

import json
import os
import secrets
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from llm_detox.errors import UsageError
from llm_detox.progress import say

MOST_BYTES = 64 * 2**20
_PROMPT = "(not kept)"  # a record needs one; a guard and a detector see the answer alone
_GRAIN = 10**6
Found = str | float | bool | None


class LiveSamples:
    """A file of records that does not grow past a bound: when half of it is full, it takes the place of the older half.

    Args:
        path: of the newer half; the older one is `path` with `.1` behind it. Only this user may read them.
        rate: the share of the texts that is kept, by chance.
        with_text: whether the text itself is kept.
        most_bytes: of both files together.

    Raises:
        UsageError: the rate is no share, or the file's folder is not there.
    """

    def __init__(self, path: Path, rate: float, *, with_text: bool = False, most_bytes: int = MOST_BYTES) -> None:
        if not 0 < rate <= 1:
            raise UsageError(f"{rate} is no share of the texts", place="--sample-rate", remedy="such as 0.01")
        if not path.parent.is_dir():
            raise UsageError("the folder does not exist", place=str(path.parent), remedy="make it, or mount a volume")
        self._path, self._rate, self._with_text, self._half = path, rate, with_text, most_bytes // 2
        self._lock = threading.Lock()
        self._failed = False

    def keep(self, text: str, found: Mapping[str, Found]) -> None:
        """Keep the text with what was found in it, or not, by chance. A disk that is full costs no answer."""
        if secrets.randbelow(_GRAIN) >= self._rate * _GRAIN:
            return
        record = {"id": secrets.token_hex(8), "time": datetime.now(UTC).isoformat(timespec="seconds"),
                  "prompt": {"text": _PROMPT}, "generations": [{**found, "text": text if self._with_text else None}]}
        line = json.dumps(record, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        try:
            with self._lock:
                self._append(line)
        except OSError as error:
            if not self._failed:  # once: it would be a line for each answer
                say(f"live samples cannot be written: {error.strerror or error} ({self._path})")
            self._failed = True

    def _append(self, line: bytes) -> None:
        if self._path.exists() and self._path.stat().st_size + len(line) > self._half:
            self._path.replace(self._path.with_name(f"{self._path.name}.1"))
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, line)
        finally:
            os.close(descriptor)


def live_samples(path: Path | None, rate: float | None, with_text: bool) -> LiveSamples | None:
    """What three options say; None where no file is named.

    Raises:
        UsageError: they do not go together.
    """
    if path is None:
        if rate is not None or with_text:
            raise UsageError("there is no file to keep samples in", place="--sample-file", remedy="name one")
        return None
    return LiveSamples(path, 0.01 if rate is None else rate, with_text=with_text)
