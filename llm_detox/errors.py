"""Failures a user can act on: what is wrong, where, and what to do about it."""

from __future__ import annotations

import os
import traceback


class DetoxError(Exception):
    """One clear error: the message names the thing, `place` where it is, `remedy` what helps.

    The command line prints it without a traceback and exits with `exit_code`.
    """

    exit_code = 1

    def __init__(self, message: str, *, place: str | None = None, remedy: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.place = place
        self.remedy = remedy

    def __str__(self) -> str:
        text = f"{self.place}: {self.message}" if self.place else self.message
        return f"{text}\n  remedy: {self.remedy}" if self.remedy else text

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows: the message alone, as the command line does."""
        return traceback.format_exception(self) if os.environ.get("LLM_DETOX_DEBUG") else [f"error: {self}"]


class UsageError(DetoxError):
    """The call itself is wrong: a bad recipe, option or argument."""

    exit_code = 2


class GateNotPassed(DetoxError):
    """The work is done, but the model did not pass the recipe's gate."""

    exit_code = 3
