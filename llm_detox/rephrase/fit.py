"""A small training loop for what rephrasing needs: denoising experts, LoRA experts, paraphrasers."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, get_cosine_schedule_with_warmup

from llm_detox.errors import DetoxError
from llm_detox.progress import task
from llm_detox.recipe.rephrase import RephraserTrainingSection

IGNORED = -100


@dataclass(frozen=True)
class Row:
    """Token ids that a model reads, and those that it should say (IGNORED where it does not count).

    For a causal model both have one length; for a seq2seq model they are encoder text and target.
    """

    input_ids: list[int]
    labels: list[int]


def fit(model: PreTrainedModel, rows: Sequence[Row], how: RephraserTrainingSection, *, seed: int, what: str,
        ) -> dict[str, Any]:
    """AdamW with warm-up and cosine decay over the rows; updates the parameters that require a gradient.

    Returns:
        steps, mean loss of the first and last tenth of the steps, in nats a token.

    Raises:
        DetoxError: there is nothing to train on, or the loss is no number.
    """
    if not rows:
        raise DetoxError("no text to train on", place=what, remedy="give records of this class")
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=how.learning_rate, weight_decay=0.01)
    batches = _batches(rows, how.batch_size, how.epochs, seed)
    schedule = get_cosine_schedule_with_warmup(optimizer, len(batches) // 20, len(batches))
    losses: list[float] = []
    model.train()
    with task(f"training {what}", len(batches), "steps") as work:
        for batch in batches:
            network: Any = model
            loss: Tensor = network(**_collated(batch, model)).loss
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                raise DetoxError("the loss is no number", place=what, remedy="lower rephraser_training.learning_rate")
            work.advance(note=f"loss {losses[-1]:.3f}")
    model.eval()
    tenth = max(1, len(losses) // 10)
    return {"steps": len(losses), "loss_first": round(sum(losses[:tenth]) / tenth, 4),
            "loss_last": round(sum(losses[-tenth:]) / tenth, 4)}


def _batches(rows: Sequence[Row], size: int, epochs: int, seed: int) -> list[list[Row]]:
    """Batches of like length, in an order fixed by the seed."""
    rng = random.Random(seed)  # noqa: S311 - an order, not a secret
    found: list[list[Row]] = []
    for _ in range(epochs):
        order = sorted(rows, key=lambda row: (len(row.input_ids) + len(row.labels), rng.random()))
        batches = [order[first: first + size] for first in range(0, len(order), size)]
        rng.shuffle(batches)
        found += batches
    return found


def _collated(batch: Sequence[Row], model: PreTrainedModel) -> dict[str, Tensor]:
    def padded(lists: Sequence[list[int]], filler: int) -> Tensor:
        width = max(len(one) for one in lists)
        return torch.tensor([one + [filler] * (width - len(one)) for one in lists]).to(model.device)

    ids = [row.input_ids for row in batch]
    return {"input_ids": padded(ids, 0), "attention_mask": padded([[1] * len(one) for one in ids], 0),
            "labels": padded([row.labels for row in batch], IGNORED)}
