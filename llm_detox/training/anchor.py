"""The anchor of preference training: on harmless text the model stays where it started.

Added to the preference loss is KL(start || now) over the whole next-token distribution, averaged over the tokens of the
start model's own continuations of harmless openings: it weighs what the model says there as often as it says it
(Ziegler et al. 2019, eq. 2, has such a penalty on all samples, and the other way round).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from trl.trainer.utils import use_adapter

from llm_detox.generation.models import load_model, load_tokenizer
from llm_detox.generation.sampling import sample_continuations
from llm_detox.progress import task
from llm_detox.recipe.evaluation import SamplingSection
from llm_detox.training.batches import padded

_OPENING_WORDS = range(3, 13)  # as many in turn: a continuation may begin anywhere in a sentence
_NEW_TOKENS = 32


def own_continuations(
    adapter: Path, passages: Sequence[str], *, count: int, sampling: SamplingSection, seed: int
) -> list[str]:
    """`count` texts: openings of harmless passages with the start model's continuations."""
    openings = [" ".join(text.split()[:_OPENING_WORDS[number % len(_OPENING_WORDS)]])
                for number, text in enumerate(passages[:count])]
    if not openings:
        return []
    each = -(-count // len(openings))
    openings = openings[: -(-count // each)]
    short = sampling.model_copy(update={"max_new_tokens": _NEW_TOKENS})
    with task("sampling the anchor", len(openings) * each, "continuations") as work:
        continuations = sample_continuations(load_model(adapter), load_tokenizer(adapter), openings, k=each,
                                             sampling=short, seed=seed, on_progress=work.advance)
    return [opening + text for opening, texts in zip(openings, continuations, strict=True) for text in texts][:count]


def anchor_rows(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int) -> list[list[int]]:
    """The token ids of each text, without an end: a continuation was cut off."""
    encoded: list[list[int]] = tokenizer(list(texts))["input_ids"] if texts else []  # type: ignore[assignment]
    return [ids[:max_length] for ids in encoded if ids]


def padded_with_mask(rows: Sequence[list[int]], padding: int) -> tuple[Tensor, Tensor]:
    """Ids [b, t], padded on the right, and which of them are tokens [b, t] bool."""
    ids = padded(rows, padding)
    return ids, torch.arange(ids.shape[1]) < torch.tensor([[len(row)] for row in rows])


def divergence(model: PeftModel, ids: Tensor, mask: Tensor, *, start: str) -> Tensor:
    """Mean over the tokens of KL(start || now) in nats, now being the active adapter.

    Args:
        model: with the adapter `start` beside the active one.
        ids: [b, t] token ids, padded on the right.
        mask: [b, t] bool, which of them are tokens.
        start: name of the frozen adapter.
    """
    def log_probs() -> Tensor:
        logits: Tensor = model(input_ids=ids, attention_mask=mask.long(), use_cache=False).logits[mask]
        return logits.float().log_softmax(-1)

    training = model.training
    model.eval()
    with torch.no_grad(), use_adapter(model, start):
        target = log_probs()
    model.train(training)
    return torch.nn.functional.kl_div(log_probs(), target, reduction="batchmean", log_target=True)
