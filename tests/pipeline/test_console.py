"""The local run's screen: the steps' own lines, all of a crash, nothing of the runner's noise."""

from __future__ import annotations

import contextlib
import io
import logging
from pathlib import Path

from pipelines.console import StepConsole, step_console

NOISE = '12:00:00.1 - INFO - Executing task \x1b[96m\'data\'\x1b[0m\n    {\n      "inputs": {"recipe": "..."}\n    }\n'


def shown(*pieces: str) -> tuple[str, str]:
    screen, log = io.StringIO(), io.StringIO()
    console = StepConsole(screen, log)
    for piece in pieces:
        console.write(piece)
    return screen.getvalue(), log.getvalue()


def test_only_the_lines_of_steps_are_shown_and_everything_is_logged() -> None:
    text = NOISE + "    == data ==\n    reading: 5 records\n    == data done in 2.0s ==\n" + NOISE
    screen, log = shown(text)
    assert screen == "== data ==\nreading: 5 records\n== data done in 2.0s ==\n"
    assert log == text


def test_the_traceback_of_a_crash_is_shown() -> None:
    screen, _ = shown("    == dpo ==\n    Traceback (most recent call last):\n    KeyError: 'x'\n")
    assert "KeyError: 'x'" in screen


def test_lines_may_arrive_in_pieces() -> None:
    assert shown("    == da", "ta ==", "\n", "    a\n")[0] == "== data ==\na\n"


def test_nothing_is_shown_behind_an_error_of_a_step() -> None:
    screen, _ = shown("    == data ==\n    error in data: no text\n", NOISE)
    assert screen.endswith("error in data: no text\n")


def test_a_step_found_in_the_cache_is_named() -> None:
    screen, _ = shown("12:00:00.1 - INFO - Task sft-2 cache hit (key=0123456789ab); skipping\n")
    assert screen == "== sft-2: found from an earlier run ==\n"


def test_what_kubeflow_tells_before_a_step_runs_is_heard(tmp_path: Path) -> None:
    screen, level = io.StringIO(), logging.getLogger().level
    with step_console(screen, tmp_path / "run.log"):
        logging.info("Task data cache hit (key=0123456789ab); skipping execution.")
    assert screen.getvalue() == "== data: found from an earlier run ==\n"
    assert logging.getLogger().level == level


def test_a_log_whose_disk_is_full_ends_and_the_steps_are_still_shown() -> None:
    screen = io.StringIO()
    with Path("/dev/full").open("w", encoding="utf-8", buffering=1) as log:
        console = StepConsole(screen, log)
        for line in ("== data ==\n", "reading\n", "== data done in 2.0s ==\n"):
            console.write(line)
            console.flush()
        assert screen.getvalue() == ("the log of this run ends here: No space left on device\n"
                                     "== data ==\nreading\n== data done in 2.0s ==\n")
        with contextlib.suppress(OSError):
            log.close()
