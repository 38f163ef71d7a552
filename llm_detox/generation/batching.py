"""Texts of like length in batches of bounded size, so that hardly anything is padded. All functions give indices."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_FEWEST_COPIES = 8  # of one item in a batch that others share, unless it has fewer


def shortest_first(lengths: Sequence[int]) -> list[int]:
    """All indices by length; those of one length keep their order."""
    return sorted(range(len(lengths)), key=lengths.__getitem__)


def sized_batches(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Batches of `size` items, shortest first."""
    order = shortest_first(lengths)
    for first in range(0, len(order), size):
        yield order[first:first + size]


def budget_batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Batches of at most `budget` padded tokens (or one item), longest first: the largest batch fails first, if any."""
    order = shortest_first(lengths)
    while order:
        size = max(1, budget // max(1, lengths[order[-1]]))
        yield order[-size:]
        order = order[:-size]


def paired_batches(lengths: Sequence[tuple[int, int]], budget: int) -> Iterator[list[int]]:
    """Like `budget_batches` for items of two texts, each of which is padded to the longest of its kind."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    while order:
        first, second = lengths[order[-1]]
        size = 1
        while size < len(order):
            second = max(second, lengths[order[-size - 1]][1])
            if (size + 1) * (first + second) > budget:
                break
            size += 1
        yield order[-size:]
        order = order[:-size]


def filled_rows(widths: Sequence[int]) -> list[list[int]]:
    """Items side by side in rows as wide as the widest of them, each in the first row with room, widest first."""
    capacity = max(widths, default=0)
    rows: list[list[int]] = []
    room: list[int] = []
    for item in sorted(range(len(widths)), key=lambda item: (-widths[item], item)):
        row = next((row for row, free in enumerate(room) if free >= widths[item]), None)
        if row is None:
            rows.append([item])
            room.append(capacity - widths[item])
        else:
            rows[row].append(item)
            room[row] -= widths[item]
    return rows


@dataclass(frozen=True)
class Copies:
    """The copies `first` .. `first + count - 1` of an item."""

    item: int
    first: int
    count: int


def copied_batches(lengths: Sequence[int], names: Sequence[str], copies: int, budget: int) -> Iterator[list[Copies]]:
    """Batches of at most `budget` padded tokens (or one row), longest first, of items that each are needed often.

    The copies of an item lie in one batch, or in as few as the budget allows.

    Args:
        lengths: [n] tokens of a row.
        names: [n] order items of one length.
        copies: how often each item is needed.
    """
    batch: list[Copies] = []
    rows = width = 0
    for item in sorted(range(len(lengths)), key=lambda item: (-lengths[item], names[item])):
        first = 0
        while first < copies:
            width = width or lengths[item]
            room = max(1, budget // width) - rows
            if room <= 0 or (batch and room < min(copies - first, _FEWEST_COPIES)):
                yield batch
                batch, rows, width = [], 0, 0
                continue
            count = min(room, copies - first)
            batch.append(Copies(item, first, count))
            rows += count
            first += count
    if batch:
        yield batch
