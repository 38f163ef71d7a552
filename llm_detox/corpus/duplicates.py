"""Which texts came before, of any number: their digests lie in a table on the disk, not in memory."""

from __future__ import annotations

import hashlib
import sqlite3
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from llm_detox.corpus.formats import Layout
from llm_detox.corpus.reading import Piece
from llm_detox.data.records import same_text_key

_CACHE_KIB = 64 * 1024
_DIGEST_BYTES = 16


class Repetitions:
    """Marks records whose text came before; case, punctuation and spacing make no other text.

    Args:
        path: of the table; one that is there is made anew, since every run reads the corpus from its beginning.
    """

    def __init__(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        self._path = path
        self._table = sqlite3.connect(path, isolation_level=None)
        for line in ("PRAGMA journal_mode=OFF", "PRAGMA synchronous=OFF", f"PRAGMA cache_size=-{_CACHE_KIB}",
                     "CREATE TABLE seen (digest BLOB PRIMARY KEY) WITHOUT ROWID", "BEGIN"):
            self._table.execute(line)

    def marked(self, piece: Piece, layout: Layout) -> Piece:
        """The piece, with its repeated records noted."""
        return replace(piece, repeated=frozenset(
            place for place, text in enumerate(layout.texts(piece)) if isinstance(text, str) and self._came(text)))

    def _came(self, text: str) -> bool:
        key = same_text_key(text) or text
        digest = hashlib.blake2b(key.encode("utf-8", "replace"), digest_size=_DIGEST_BYTES).digest()
        return self._table.execute("INSERT OR IGNORE INTO seen VALUES (?)", (digest,)).rowcount == 0

    def __enter__(self) -> Repetitions:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._table.close()
        self._path.unlink(missing_ok=True)
