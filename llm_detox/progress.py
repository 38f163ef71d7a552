"""What people and logs are told: how far the work is, and text of others made safe to show.

Progress is a live bar on a terminal and a readable line now and then elsewhere. It goes to stderr, so that stdout stays
free for results. A server's answer, a file's name or a key of a recipe may hold characters that would move the cursor,
set the title or turn the writing around, by chance or on purpose: they are written out.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO, TypeVar, cast

from llm_detox.errors import without_logins

T = TypeVar("T")
_SECONDS_BETWEEN_LINES = 10.0
_CONTROLS = "\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f"  # all but tab and newline
_DIRECTIONS = "\\u061c\\u200e\\u200f\\u202a-\\u202e\\u2066-\\u2069"  # Unicode's Bidi_Control
_UNPRINTABLE = "\\u2028\\u2029\\ud800-\\udfff"  # separators, and halves of surrogate pairs
_UNSAFE = re.compile(f"[{_CONTROLS}{_DIRECTIONS}{_UNPRINTABLE}]")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")  # in what libraries log


def visible(text: str) -> str:
    """The text with control and direction characters written out, such as `\\x1b`; newlines and tabs stay.

    Each character is treated for itself, so that the pieces of a stream may be shown one by one.
    """
    return _UNSAFE.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def visible_json(value: Any) -> str:
    """The value as JSON on one line: readable, exact when parsed, and without such characters in it."""
    return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", json.dumps(value, ensure_ascii=False))


class _SafeStream:
    """A text stream that writes control and direction characters out, and is otherwise the stream behind it."""

    def __init__(self, stream: TextIO, *, drop_colours: bool) -> None:
        self.behind, self._drop_colours = stream, drop_colours

    def write(self, text: str) -> int:
        self.behind.write(visible(_COLOUR.sub("", text) if self._drop_colours else text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.behind, name)


@contextmanager
def safe_output() -> Iterator[None]:
    """Within the block all that is written to stdout and stderr, by whomever, goes through `visible`.

    That takes in what libraries log and warn of (the names in a model's files, for example), the command line's own
    words about its arguments, and tracebacks. Progress bars write behind it.
    """
    before = sys.stdout, sys.stderr
    sys.stdout = cast("TextIO", _SafeStream(_behind(sys.stdout), drop_colours=False))
    sys.stderr = cast("TextIO", _SafeStream(_behind(sys.stderr), drop_colours=True))
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        sys.excepthook = _show_exception  # of an error that ends the program, behind the block


def _behind(stream: TextIO) -> TextIO:
    return stream.behind if isinstance(stream, _SafeStream) else stream


def _show_exception(*details: Any) -> None:
    """Show an error that nobody expected."""
    with safe_output():
        sys.__excepthook__(*details)


def say(message: str) -> None:
    """Print one line about what happens."""
    print(visible(without_logins(message)), file=sys.stderr, flush=True)


def one_voice() -> None:
    """Keep the libraries' own progress bars, telemetry and notices off: they would report twice, or to others.

    Called at the start of a process, before those libraries are imported; its children inherit the variables.
    """
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # peft and TRL still ask transformers 5 by the old name; nobody who runs a step can change that.
    warnings.filterwarnings("ignore", r"`is_gradient_checkpointing` is deprecated", FutureWarning)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for each request


def human_seconds(seconds: float) -> str:
    """`75` -> `1m15s`; short spans keep a decimal."""
    if seconds < 10:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


def human_bytes(count: float) -> str:
    """`1536` -> `1.5 KiB`."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


class Task(ABC):
    """A piece of work of known or unknown size that reports how far it is and how long it will take."""

    def __init__(self, description: str, total: int | None, unit: str) -> None:
        self.description, self.total, self.unit = description, total, unit
        self.done = 0
        self.started = time.monotonic()
        self._resumed = 0

    def skip(self, count: int) -> None:
        """Count work that an earlier run finished; it is not part of the rate."""
        self.done += count
        self._resumed += count
        self._show()

    def advance(self, count: int = 1, note: str = "") -> None:
        self.done += count
        self._show(note)

    @abstractmethod
    def finish(self) -> None:
        """Called once at the end."""

    @abstractmethod
    def _show(self, note: str = "") -> None:
        """Tell how far it is, in the display's own way."""

    def _rate(self) -> float:
        elapsed = time.monotonic() - self.started
        return (self.done - self._resumed) / elapsed if elapsed > 0 else 0.0

    def _line(self, note: str) -> str:
        size = f"{self.done}/{self.total}" if self.total is not None else str(self.done)
        text = f"{self.description}: {size} {self.unit}"
        rate = self._rate()
        if rate > 0:
            text += f", {rate:.3g} {self.unit}/s"
            if self.total is not None and self.total > self.done:
                text += f", {human_seconds((self.total - self.done) / rate)} to go"
        return f"{text}, {note}" if note else text


class _LineTask(Task):
    """A line at the start, every ten seconds, and at the end."""

    def __init__(self, description: str, total: int | None, unit: str) -> None:
        super().__init__(description, total, unit)
        self._last = self.started

    def _show(self, note: str = "") -> None:
        now = time.monotonic()
        if now - self._last >= _SECONDS_BETWEEN_LINES:
            self._last = now
            say(self._line(note))

    def finish(self) -> None:
        took = time.monotonic() - self.started
        if took >= 2:
            say(f"{self.description}: {self.done} {self.unit} done in {human_seconds(took)}")


class _BarTask(Task):
    def __init__(self, description: str, total: int | None, unit: str) -> None:
        super().__init__(description, total, unit)
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self._progress = Progress(
            TextColumn("{task.description}", markup=False), BarColumn(),
            TextColumn("{task.completed}/{task.total} {task.fields[unit]}"),
            TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[note]}", markup=False),
            console=Console(file=_behind(sys.stderr)),
        )
        self._bar = self._progress.add_task(visible(description), total=total, unit=unit, note="")
        self._progress.start()

    def _show(self, note: str = "") -> None:
        self._progress.update(self._bar, completed=self.done, note=visible(note))

    def finish(self) -> None:
        self._progress.stop()


@contextmanager
def task(description: str, total: int | None = None, unit: str = "records") -> Iterator[Task]:
    """Show one piece of work: `with task("scoring", len(texts), "texts") as work: work.advance(32)`."""
    work: Task = (_BarTask if sys.stderr.isatty() else _LineTask)(description, total, unit)
    try:
        yield work
    finally:
        work.finish()


def track(items: Iterable[T], description: str, total: int | None = None, unit: str = "records") -> Iterator[T]:
    """Yield the items, showing how far the loop over them is."""
    with task(description, total, unit) as work:
        for item in items:
            yield item
            work.advance()
