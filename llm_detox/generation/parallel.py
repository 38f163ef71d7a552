"""Work side by side on the cores of a CPU, each piece with its share of them, instead of one after the other on all.

Cores that share a small matrix product wait for one another at each of them; cores with a piece each wait once a piece.
PyTorch lets go of Python's lock while it computes, so threads do.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event
from typing import Protocol, TypeVar

import torch
from transformers import PreTrainedModel

Piece = TypeVar("Piece")
Outcome = TypeVar("Outcome")


def run_in_parallel(
    work: Callable[[Piece, Event], Outcome], pieces: Iterable[Piece], at_once: int
) -> Iterator[tuple[Piece, Outcome]]:
    """Each piece with its outcome, in the order of the pieces. All workers share one model.

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
    with _workers(at_once) as pool:
        torch.set_num_threads(_share(at_once))  # what the caller does between two pieces takes no worker's core
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


class Runner(Protocol):
    """Runs a job for each model and lists what they return, in their order."""

    def __call__(self, jobs: Sequence[Callable[[], Outcome]]) -> list[Outcome]: ...


@contextmanager
def side_by_side(models: Sequence[PreTrainedModel]) -> Iterator[Runner]:
    """What runs a job for each of several models.

    At the same time where all models are on a processor that has a thread for each of them, else one by one.
    """
    if len(models) < 2 or torch.get_num_threads() < len(models) or any(model.device.type != "cpu" for model in models):
        yield lambda jobs: [job() for job in jobs]
        return
    with _workers(len(models)) as pool:
        yield lambda jobs: [outcome.result() for outcome in [pool.submit(job) for job in jobs]]


@contextmanager
def _workers(count: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that divide the cores among them. What a thread sets for itself holds for all that start later."""
    cores = torch.get_num_threads()
    pool = ThreadPoolExecutor(count, "side-by-side", torch.set_num_threads, (_share(count),))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(cores)


def _share(workers: int) -> int:
    return max(1, torch.get_num_threads() // workers)
