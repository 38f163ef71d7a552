"""Runs `llm-detox` as its users do: by its words, inside this process, where the libraries are loaded once."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from unittest.mock import patch

from llm_detox.cli import main


@dataclass(frozen=True)
class Outcome:
    """What a command left on its two outputs, and its exit code."""

    code: int
    stdout: str
    stderr: str


def outcome_of(words: Sequence[str]) -> Outcome:
    """Run a command, whatever its exit code."""
    stdout, stderr, code = io.StringIO(), io.StringIO(), 0
    with patch.object(sys, "argv", ["llm-detox", *words]), redirect_stdout(stdout), redirect_stderr(stderr):
        try:
            main()
        except SystemExit as ended:
            code = int(ended.code or 0)
    return Outcome(code, stdout.getvalue(), stderr.getvalue())


def run(*words: str, code: int = 0) -> str:
    """Run a command that must end with this exit code; returns its stdout.

    Raises:
        AssertionError: it ended with another one.
    """
    outcome = outcome_of(words)
    assert outcome.code == code, f"{' '.join(words)} ended with {outcome.code}:\n{outcome.stderr}"
    return outcome.stdout
