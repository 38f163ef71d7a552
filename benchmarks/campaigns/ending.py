"""How every campaign ends."""

from __future__ import annotations

from collections.abc import Sequence

_MOST_SHOWN = 50


def ended(problems: Sequence[str], summary: str) -> int:
    """Print what does not hold, then the summary line.

    Returns:
        The exit code: 1 where something does not hold.
    """
    print(*problems[:_MOST_SHOWN], sep="\n", end="\n" if problems else "")
    print(f"{summary}, {len(problems)} problems")
    return 1 if problems else 0
