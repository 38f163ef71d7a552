"""An input that somebody reported in public, rebuilt small, with what must come of it here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Refused:
    """The input is refused: `message` is a pattern of the error's words, place included."""

    message: str


@dataclass(frozen=True)
class Case:
    """One input.

    Attributes:
        source: of the report, `owner/name#number`.
        what: the input in words.
        read: gives the input to the door that it applies to; the folder is empty and the case's own.
        outcome: the value that `read` returns, or that the input is refused.
    """

    source: str
    what: str
    read: Callable[[Path], object]
    outcome: object


def table(name: str, content: str | bytes, column: str | None = None) -> Callable[[Path], object]:
    """Reads a file of that name and content as a table; of each record one column, where one is named."""
    def read(folder: Path) -> object:
        from llm_detox.data.sources import column as value_of
        from llm_detox.data.sources import read_table

        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
        records = list(read_table(folder / name))
        return [value_of(record, column, name) for record in records] if column else records

    return read


def folder_of(files: dict[str, str]) -> Callable[[Path], object]:
    """Reads a folder with these files as one table."""
    def read(folder: Path) -> object:
        from llm_detox.data.sources import read_table

        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(content, "utf-8")
        return list(read_table(folder))

    return read


def of(value: Callable[[], object]) -> Callable[[Path], object]:
    """Reads what needs no file."""
    return lambda _: value()
