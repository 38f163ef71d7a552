"""What a local run shows: the steps' own lines. Everything that Kubeflow prints beside them goes to the log alone."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from io import TextIOBase
from pathlib import Path
from typing import TextIO

_BEGINS = re.compile(r"\s*== (?!.* done in )")
_ENDS = re.compile(r"\s*(== .* done in |error in )")
_FOUND = re.compile(r"Task (\S+) cache hit")
_COLOURS = re.compile(r"\x1b\[\d*m")


class StepConsole(TextIOBase):
    """A text stream that passes on what stands between a step's first and last line, and logs all of it.

    A log that can no longer be written is given up: the step that runs says itself what it lacks.
    """

    def __init__(self, screen: TextIO, log: TextIO) -> None:
        self._screen, self._log = screen, log
        self._inside, self._line, self._logging = False, "", True

    def write(self, text: str) -> int:
        self._note(text)
        *whole, self._line = (self._line + text).split("\n")
        for line in whole:
            self._show(line)
        return len(text)

    def flush(self) -> None:
        self._note("")
        self._screen.flush()

    def _note(self, text: str) -> None:
        if self._logging:
            try:
                self._log.write(text)
                self._log.flush()
            except OSError as error:
                self._logging = False
                self._screen.write(f"the log of this run ends here: {error.strerror}\n")

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
    file = log.open("w", encoding="utf-8")
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    try:
        console = StepConsole(screen, file)
        # Kubeflow listens to its own log while a step runs, and tells before that which steps it has found.
        root.setLevel(logging.INFO)
        root.addHandler(logging.StreamHandler(console))
        with redirect_stdout(console), redirect_stderr(console):
            yield
    finally:
        root.setLevel(level)
        root.handlers[:] = handlers
        with suppress(OSError):  # what it still holds of a log that was given up
            file.close()
