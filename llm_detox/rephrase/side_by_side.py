"""Several models at once on a processor, each with its share of the cores.

Two cores share the matrix products of a few sentences badly: they wait for one another at each of them. With a model
for each core they wait once a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Protocol, TypeVar

import torch
from transformers import PreTrainedModel

_Found = TypeVar("_Found")


class Runner(Protocol):
    def __call__(self, jobs: Sequence[Callable[[], _Found]]) -> list[_Found]: ...


@contextmanager
def side_by_side(models: Sequence[PreTrainedModel]) -> Iterator[Runner]:
    """What runs a job for each model and lists what they return.

    At the same time where all models are on a processor that has a thread for each of them, else one by one.
    """
    threads = torch.get_num_threads()
    share = threads // len(models)
    if len(models) < 2 or not share or any(model.device.type != "cpu" for model in models):
        yield lambda jobs: [job() for job in jobs]
        return
    with ThreadPoolExecutor(len(models), initializer=torch.set_num_threads, initargs=(share,)) as pool:
        try:
            yield lambda jobs: [done.result() for done in [pool.submit(job) for job in jobs]]
        finally:
            torch.set_num_threads(threads)  # what a thread sets for itself holds for all that are started later
