"""Pieces of work on the cores of a CPU side by side, each with its share of the cores, instead of one on all."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event
from typing import TypeVar

import torch

Piece = TypeVar("Piece")
Outcome = TypeVar("Outcome")


def run_in_parallel(
    work: Callable[[Piece, Event], Outcome], pieces: Iterable[Piece], at_once: int
) -> Iterator[tuple[Piece, Outcome]]:
    """Each piece with its outcome, in the order of the pieces.

    PyTorch lets go of Python's lock while it computes, so threads do; they share the model's weights.

    Args:
        work: called with a piece and an event that is set when nobody wants the outcome any more.
        pieces: taken as workers become free, and not sooner.
        at_once: how many; 1 works in the caller's thread on all cores.
    """
    unwanted = Event()
    if at_once == 1:
        for piece in pieces:
            yield piece, work(piece, unwanted)
        return
    cores = torch.get_num_threads()
    torch.set_num_threads(max(1, cores // at_once))  # what new threads take over
    pool = ThreadPoolExecutor(at_once, thread_name_prefix="side-by-side")
    running: deque[tuple[Piece, Future[Outcome]]] = deque()
    try:
        for piece in pieces:
            running.append((piece, pool.submit(work, piece, unwanted)))
            if len(running) > at_once:  # one waits, so that no worker does
                first, outcome = running.popleft()
                yield first, outcome.result()
        for first, outcome in running:
            yield first, outcome.result()
    finally:
        unwanted.set()
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(cores)
