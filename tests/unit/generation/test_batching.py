"""Batches of like length: each item once, the budget kept, the longest first, little padding."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llm_detox.generation.batching import budget_batches, copied_batches, filled_rows, paired_batches, sized_batches

LENGTHS = st.lists(st.integers(1, 40), max_size=30)
BUDGET = st.integers(1, 200)


@given(lengths=LENGTHS, budget=BUDGET)
def test_each_item_comes_once_within_the_budget_longest_first(lengths: list[int], budget: int) -> None:
    batches = list(budget_batches(lengths, budget))
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    longest = [max(lengths[index] for index in batch) for batch in batches]
    assert longest == sorted(longest, reverse=True)
    assert all(len(batch) == 1 or len(batch) * width <= budget for batch, width in zip(batches, longest, strict=True))
    # None but the last could have held the longest of the next.
    assert all((len(batch) + 1) * width > budget for batch, width in zip(batches[:-1], longest, strict=False))


def test_items_of_one_length_keep_their_order() -> None:
    assert list(budget_batches([3, 5, 3, 5], 10)) == [[1, 3], [0, 2]]
    assert list(sized_batches([3, 1, 3, 1, 2], 2)) == [[1, 3], [4, 0], [2]]


@given(pairs=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), max_size=30), budget=BUDGET)
def test_pairs_are_padded_to_the_longest_of_each_kind(pairs: list[tuple[int, int]], budget: int) -> None:
    batches = list(paired_batches(pairs, budget))
    assert sorted(index for batch in batches for index in batch) == list(range(len(pairs)))
    for batch in batches:
        width = max(pairs[index][0] for index in batch) + max(pairs[index][1] for index in batch)
        assert len(batch) == 1 or len(batch) * width <= budget


@given(widths=LENGTHS)
def test_no_row_is_wider_than_the_widest_item_and_each_is_filled_before_another_begins(widths: list[int]) -> None:
    rows = filled_rows(widths)
    assert sorted(item for row in rows for item in row) == list(range(len(widths)))
    sums = [sum(widths[item] for item in row) for row in rows]
    assert all(total <= max(widths) for total in sums)
    assert all(widths[row[0]] + sums[before] > max(widths) for n, row in enumerate(rows) for before in range(n))


@given(lengths=LENGTHS, copies=st.integers(1, 30), budget=BUDGET)
def test_every_copy_comes_once_and_in_the_order_of_its_item(lengths: list[int], copies: int, budget: int) -> None:
    batches = list(copied_batches(lengths, [f"{index:02}" for index in range(len(lengths))], copies, budget))
    numbers = [(part.item, part.first + n) for batch in batches for part in batch for n in range(part.count)]
    assert sorted(numbers) == [(item, number) for item in range(len(lengths)) for number in range(copies)]
    for batch in batches:
        rows = sum(part.count for part in batch)
        assert rows == 1 or rows * max(lengths[part.item] for part in batch) <= budget


def test_no_crumbs_of_an_item_end_a_batch_of_others() -> None:
    batches = list(copied_batches([10, 10], ["a", "b"], 25, 280))
    assert [[(part.item, part.count) for part in batch] for batch in batches] == [[(0, 25)], [(1, 25)]]
