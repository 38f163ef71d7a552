"""Batches of sequences of like length, in random order: hardly any padding, and no long texts first.

The order follows from seed and epoch alone, so that a run that goes on behind a checkpoint sees the same batches.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

from torch.utils.data import Sampler
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llm_detox.errors import DetoxError
from llm_detox.training.sharding import AveragedAdapters
from llm_detox.training.texts import IGNORED


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


class _SetEpoch(TrainerCallback):
    """Tells the sampler its epoch: behind the batches that a resumed run skips, the data loader does not reach it."""

    def __init__(self, sampler: LikeLengths) -> None:
        self.sampler = sampler

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.sampler.set_epoch(int((state.epoch or 0) + 1e-6))


class LikeLengthBatches(AveragedAdapters):
    """For a Trainer whose data set has a column `length`: draw its training batches with `LikeLengths`."""

    args: Any
    train_dataset: Any

    def _get_train_sampler(self, train_dataset: Any = None) -> LikeLengths:
        rows = self.train_dataset if train_dataset is None else train_dataset
        together = self.args.per_device_train_batch_size * self.args.world_size
        sampler = LikeLengths(list(rows["length"]), together, self.args.data_seed)
        self.add_callback(_SetEpoch(sampler))  # type: ignore[attr-defined]
        return sampler

    def training_step(self, model: Any, inputs: Any, *arguments: Any) -> Any:
        """A step of the trainer.

        Raises:
            DetoxError: no token of the batch is learned from, which would count as a step without an effect.
        """
        learned = (inputs["labels"] != IGNORED) if "labels" in inputs else inputs["completion_mask"]
        if not learned[..., 1:].any():
            raise DetoxError("a batch holds no token to learn from", place="training",
                             remedy="raise max_length of this step so that completions are not cut off, or leave out "
                                    "records with an empty completion")
        return super().training_step(model, inputs, *arguments)  # type: ignore[misc]
