"""What a local run shows: the steps' own lines. Everything that Kubeflow prints beside them goes to the log alone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import TextIOBase
from pathlib import Path
from typing import TextIO

_BEGINS = re.compile(r"\s*== (?!.* done in )")
_ENDS = re.compile(r"\s*(== .* done in |error in )")
_FOUND = re.compile(r"Task (\S+) cache hit")
_COLOURS = re.compile(r"\x1b\[\d*m")


class StepConsole(TextIOBase):
    """A text stream that passes on what stands between a step's first and last line, and logs all of it."""

    def __init__(self, screen: TextIO, log: TextIO) -> None:
        self._screen, self._log = screen, log
        self._inside, self._line = False, ""

    def write(self, text: str) -> int:
        self._log.write(text)
        *whole, self._line = (self._line + text).split("\n")
        for line in whole:
            self._show(line)
        return len(text)

    def flush(self) -> None:
        self._log.flush()
        self._screen.flush()

    def _show(self, line: str) -> None:
        if found := _FOUND.search(_COLOURS.sub("", line)):
            self._screen.write(f"== {found[1]}: found from an earlier run ==\n")
        elif self._inside or _BEGINS.match(line):
            self._inside = not _ENDS.match(line)
            self._screen.write(line.removeprefix("    ") + "\n")
        self._screen.flush()


@contextmanager
def step_console(screen: TextIO, log: Path) -> Iterator[None]:
    """Redirect stdout and stderr of the block through a `StepConsole`.

    Args:
        screen: where the steps' lines go.
        log: the file that gets everything.
    """
    with log.open("w", encoding="utf-8") as file:
        console = StepConsole(screen, file)
        with redirect_stdout(console), redirect_stderr(console):
            yield
