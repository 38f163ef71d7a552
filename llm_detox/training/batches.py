"""Batches of sequences of like length, in random order: hardly any padding, and no long texts first."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

from torch.utils.data import Sampler


class LikeLengths(Sampler[int]):
    """Indices whose consecutive groups of `batch_size` have (nearly) the same length; the groups are shuffled.

    Which of the equally long come together changes with every epoch. Transformers' own grouping sorts each of at
    least four parts from long to short, which pads small sets more and ties the order of training to the length.

    Args:
        lengths: [n] tokens of each row.
        batch_size: rows a batch; an incomplete batch comes last.
        seed: with the epoch it decides the order.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self.lengths, self.batch_size, self.seed = lengths, batch_size, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer at the start of every epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        chance = random.Random(f"{self.seed} {self.epoch}")  # noqa: S311 - an order, no secret
        order = list(range(len(self.lengths)))
        chance.shuffle(order)
        left_over = len(order) % self.batch_size
        last, order = order[:left_over], order[left_over:]
        order.sort(key=lambda index: self.lengths[index])
        batches = [order[start: start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        chance.shuffle(batches)
        yield from (index for batch in [*batches, last] for index in batch)


class LikeLengthBatches:
    """For a Trainer whose data set has a column `length`: draw its training batches with `LikeLengths`."""

    args: Any
    train_dataset: Any

    def _get_train_sampler(self, train_dataset: Any = None) -> LikeLengths:
        rows = self.train_dataset if train_dataset is None else train_dataset
        return LikeLengths(list(rows["length"]), self.args.per_device_train_batch_size, self.args.data_seed)
