"""Records that cannot be used: refused one by one, or left out up to a number, counted and listed."""

from __future__ import annotations

from collections.abc import Iterator

from llm_detox.errors import DetoxError
from llm_detox.progress import say

_SHOWN = 5


class BadRecords:
    """The bad records that a step has met, each once, however many read it.

    Args:
        allowed: how many of them may be left out; with 0 the first one is an error.

    Attributes:
        unread: how many times a reader has passed over a line that is no record.
    """

    def __init__(self, allowed: int) -> None:
        self.unread = 0
        self._allowed = allowed
        self._reasons: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._reasons)

    def leave_out(self, error: DetoxError) -> None:
        """Note a record that is left out.

        Raises:
            DetoxError: it is one too many.
        """
        place = str(error.place)
        if not self._allowed:
            raise error
        if place not in self._reasons and len(self) == self._allowed:
            raise DetoxError(f"{error.message}; {self._allowed} bad records were left out before, and no more may be",
                             place=place, remedy=f"{error.remedy}; or raise the recipe's data.skip_bad_records")
        self._reasons[place] = error.message

    def leave_out_line(self, error: DetoxError) -> None:
        """Note a line that is no record, as `leave_out` does."""
        self.leave_out(error)
        self.unread += 1

    def listed(self) -> Iterator[dict[str, str]]:
        """Place and reason of each."""
        return ({"place": place, "reason": reason} for place, reason in self._reasons.items())

    def say(self) -> None:
        """Say how many there are, and the first of them."""
        if self._reasons:
            first = [f"  {place}: {reason}" for place, reason in list(self._reasons.items())[:_SHOWN]]
            say("\n".join([f"{len(self)} bad records are left out (skipped.jsonl lists them):", *first]))


STRICT = BadRecords(0)
"""The first bad record is an error."""
