"""Batches on several cores at once: in order, not ahead of the demand, and ended with whoever asked for them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from threading import Event, get_ident

import pytest
import torch

from llm_detox.generation.parallel import run_in_parallel


@pytest.fixture(autouse=True)
def four_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("at_once", [1, 2, 4])
def test_outcomes_come_in_the_order_of_the_pieces_however_long_each_takes(at_once: int) -> None:
    def work(piece: int, unwanted: Event) -> int:
        time.sleep(0.02 if piece % 3 == 0 else 0)
        return piece * piece

    assert list(run_in_parallel(work, range(12), at_once)) == [(piece, piece * piece) for piece in range(12)]


def test_each_worker_has_its_share_of_the_cores_and_the_caller_gets_all_back() -> None:
    def work(piece: int, unwanted: Event) -> tuple[int, int]:
        time.sleep(0.05)
        torch.rand(100, 100) @ torch.rand(100, 100)
        return get_ident(), torch.get_num_threads()

    found = [outcome for _, outcome in run_in_parallel(work, range(6), 2)]
    assert len({thread for thread, _ in found}) == 2
    assert {threads for _, threads in found} == {2}
    assert torch.get_num_threads() == 4


def test_pieces_are_made_as_they_are_needed() -> None:
    made: list[int] = []

    def pieces() -> Iterator[int]:
        for number in range(100):
            made.append(number)
            yield number

    outcomes = run_in_parallel(lambda piece, unwanted: piece, pieces(), 2)
    next(outcomes)
    assert len(made) <= 4
    outcomes.close()


def test_whoever_stops_asking_stops_the_work() -> None:
    ended: list[int] = []

    def work(piece: int, unwanted: Event) -> int:
        if piece:
            assert unwanted.wait(30), "it is told that nobody waits for it"
            ended.append(piece)
        return piece

    outcomes = run_in_parallel(work, range(50), 2)
    assert next(outcomes) == (0, 0)
    started = time.monotonic()
    outcomes.close()
    assert time.monotonic() - started < 20
    assert ended
    assert len(ended) <= 3
    assert torch.get_num_threads() == 4


def test_a_piece_that_fails_ends_all_with_its_own_error() -> None:
    def work(piece: int, unwanted: Event) -> int:
        if piece == 3:
            raise ValueError("piece 3")
        return piece

    found = []
    with pytest.raises(ValueError, match="piece 3"):
        for piece, _ in run_in_parallel(work, range(10), 2):
            found.append(piece)
    assert found == [0, 1, 2]
