"""Several texts in one row, so that hardly any padding is computed; none of them sees another.

Positions start anew with every text, from which transformers makes an attention mask of blocks, for the models that
pass positions on to it; `check_packing` refuses the others (such as OPT). Unlike TRL's
padding-free batches, rows stay rows: without FlashAttention one long row would cost the square of its length.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from llm_detox.errors import DetoxError
from llm_detox.training.texts import IGNORED


def pack(rows: Sequence[dict[str, Any]], max_length: int) -> list[dict[str, Any]]:
    """Put rows of `encode` together, each into the fullest row that still has room, longest first (best fit).

    Returns:
        `{"input_ids", "labels", "position_ids", "length"}`; a text's first token is not learned from the text before.
    """
    packed: list[dict[str, Any]] = []
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


class PackedRows:
    """Makes a batch of packed rows: [b, n] `input_ids`, `labels` and `position_ids`, and the number of `tokens`."""

    def __init__(self, pad_token_id: int) -> None:
        self.pad_token_id = pad_token_id

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        width = max(row["length"] for row in rows)

        def padded(name: str, value: int) -> Tensor:
            return torch.tensor([row[name] + [value] * (width - row["length"]) for row in rows])

        # Padding has position 0 throughout: every such token is a text of its own, which nothing looks at.
        return {"input_ids": padded("input_ids", self.pad_token_id), "labels": padded("labels", IGNORED),
                "position_ids": padded("position_ids", 0), "tokens": torch.tensor(sum(row["length"] for row in rows))}
