"""Parts of a file for several runs: one rule for all steps. Shard (i, n) is the i-th of n neighbouring stretches."""

from __future__ import annotations

from llm_detox.errors import DetoxError, UsageError

LARGEST_COUNT = 64
Shard = tuple[int, int]  # number, counted from 0, and how many there are
WHOLE: Shard = (0, 1)


def read_shard(text: str) -> Shard:
    """`2/8` -> (2, 8).

    Raises:
        UsageError: it is written otherwise, or there is no such shard.
    """
    index, slash, total = text.partition("/")
    if not (slash and index.isdecimal() and total.isdecimal() and int(index) < int(total)):
        raise UsageError(f"{text!r} is not a shard", place="--shard",
                         remedy="write i/n with i from 0 to n - 1, as in 0/4")
    return int(index), int(total)


def shard_names(count: int) -> list[str]:
    """`["0/2", "1/2"]` for 2.

    Raises:
        UsageError: less than one shard, or more than a cluster should be asked for.
    """
    if not 1 <= count <= LARGEST_COUNT:
        raise UsageError(f"{count} shards", place="shards", remedy=f"from 1 to {LARGEST_COUNT}")
    return [f"{index}/{count}" for index in range(count)]


def shard_range(count: int, shard: Shard = WHOLE) -> range:
    """Which of `count` things a shard has; the ranges of all shards put together are the whole, in order.

    Raises:
        DetoxError: the shard is not one of its count.
    """
    index, total = shard
    if not 0 <= index < total:
        raise DetoxError(f"there is no shard {index} of {total}", remedy="shards count from 0: 0/4, 1/4, 2/4, 3/4")
    return range(count * index // total, count * (index + 1) // total)
