"""Batches of sequences of like length in random order, and several texts packed in one row: hardly any padding."""

from __future__ import annotations

import random
from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from torch.utils.data import Sampler
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llm_detox.errors import DetoxError
from llm_detox.training.distributed import AveragedAdapters
from llm_detox.training.encoding import IGNORED, TokenRow


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
    """Tells the sampler its epoch: where a resumed run skips batches, the data loader does not reach the sampler."""

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


class PackedRow(TokenRow):
    """Several texts in one row."""

    position_ids: list[int]  # from 0 in each text


def pack(rows: Sequence[TokenRow], max_length: int) -> list[PackedRow]:
    """Put rows of `encode` together, each into the fullest row that still has room, longest first (best fit).

    A text's first token is not learned from the text before.
    """
    packed: list[PackedRow] = []
    room: list[tuple[int, int]] = []  # (free tokens, number of the row), sorted
    for row in sorted(rows, key=lambda row: -row["length"]):
        place = bisect_left(room, (row["length"], 0))
        if place < len(room):
            free, number = room.pop(place)
        else:
            free, number = max_length, len(packed)
            packed.append({"input_ids": [], "labels": [], "position_ids": [], "length": 0})
        target = packed[number]
        target["input_ids"] += row["input_ids"]
        target["labels"] += [IGNORED, *row["labels"][1:]]
        target["position_ids"] += range(row["length"])
        target["length"] += row["length"]
        if free > row["length"]:
            insort(room, (free - row["length"], number))
    return packed


def check_packing(model: Any) -> None:
    """Try on the model whether a text changes with the one packed before it.

    Raises:
        DetoxError: it does, or the model takes no positions.
    """
    first, other, second = [3, 4, 5, 6], [7, 8, 9, 10], [11, 12, 13]
    ids = torch.tensor([first + second, other + second], device=model.device)
    positions = torch.tensor([[*range(len(first)), *range(len(second))]] * 2, device=model.device)
    was_training = model.training
    model.eval()  # without dropout, which would draw random numbers
    try:
        with torch.no_grad():
            one, two = model(input_ids=ids, position_ids=positions, use_cache=False).logits[:, len(first):].float()
        apart = bool((one - two).abs().max() <= 0.05 * one.std())
    except TypeError:
        apart = False
    finally:
        model.train(was_training)
    if not apart:
        raise DetoxError("in a packed row this model sees the texts before", place="training.sft.packing",
                         remedy="set training.sft.packing: false")


class PackedBatches:
    """Makes a batch of packed rows: [b, n] `input_ids`, `labels` and `position_ids`, and the number of `tokens`."""

    def __init__(self, pad_token_id: int) -> None:
        self.pad_token_id = pad_token_id

    def __call__(self, rows: Sequence[PackedRow]) -> dict[str, Tensor]:
        # Padding has position 0 throughout: every such token is a text of its own, which nothing looks at.
        return {"input_ids": padded([row["input_ids"] for row in rows], self.pad_token_id),
                "labels": padded([row["labels"] for row in rows], IGNORED),
                "position_ids": padded([row["position_ids"] for row in rows], 0),
                "tokens": torch.tensor(sum(row["length"] for row in rows))}


class Seq2SeqBatches:
    """Makes a batch for an encoder with a decoder: the decoder reads the target, shifted by one.

    [b, n] `input_ids` and `attention_mask`, [b, m] `labels` and `decoder_input_ids`, and the number of `tokens`.

    Args:
        model: knows how its decoder starts.
        pad_token_id: fills up the encoder texts.
    """

    def __init__(self, model: PreTrainedModel | PeftModel, pad_token_id: int) -> None:
        self._model: Any = model
        self._pad_token_id = pad_token_id

    def __call__(self, rows: Sequence[TokenRow]) -> dict[str, Tensor]:
        texts, labels = [row["input_ids"] for row in rows], padded([row["labels"] for row in rows], IGNORED)
        return {"input_ids": padded(texts, self._pad_token_id),
                "attention_mask": padded([[1] * len(ids) for ids in texts], 0), "labels": labels,
                "decoder_input_ids": self._model.prepare_decoder_input_ids_from_labels(labels=labels),
                "tokens": torch.tensor(sum(row["length"] for row in rows))}


def padded(rows: Sequence[list[int]], value: int) -> Tensor:
    """[b, longest], each row filled up on the right."""
    width = max(map(len, rows))
    return torch.tensor([row + [value] * (width - len(row)) for row in rows])
