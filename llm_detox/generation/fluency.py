"""How likely a language model finds a text: negative log-likelihoods in length-sorted batches, memory kept flat."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from llm_detox.errors import DetoxError
from llm_detox.generation.models import load_model, load_tokenizer

Loss = tuple[float, int]
_LOGITS_AT_ONCE = 2**25  # float32 values: 128 MiB
# Architectures that change the logits behind the output layer are run whole instead of in pieces.
_LOGIT_CHANGES = ("final_logit_softcapping", "logit_scale", "logits_scaling", "output_multiplier", "lm_head_multiplier")


def changes_logits(config: PretrainedConfig) -> bool:
    """Whether models of this configuration do more to their logits than the output layer does."""
    return any(getattr(part, name, None) for part in (config, config.get_text_config()) for name in _LOGIT_CHANGES)


@dataclass
class _Item:
    index: int
    tokens: list[int]
    first: int  # the first token that counts


class FluencyModel:
    """A causal language model that reads texts.

    Args:
        source: what `load_model` takes.
        model, tokenizer: a loaded pair instead of a source.
        batch_tokens: padded tokens of a batch.
    """

    def __init__(self, source: str | None = None, *, model: PreTrainedModel | None = None,
                 tokenizer: PreTrainedTokenizerBase | None = None, batch_tokens: int = 4096) -> None:
        if source is not None:
            model, tokenizer = load_model(source), load_tokenizer(source)
        if model is None or tokenizer is None:
            raise ValueError("a source, or a model with its tokenizer")
        self.name = source or "given model"
        self.model, self.tokenizer = model, tokenizer
        self.batch_tokens = batch_tokens

    def losses(self, texts: Sequence[str], *, contexts: Sequence[str] | None = None,
               on_progress: Callable[[int], None] | None = None) -> list[Loss]:
        """Sum of negative log-likelihoods (nats) and number of tokens it is over, for each text.

        Args:
            texts: those to read; texts past the model's length are cut.
            contexts: what comes before each text; it is read, but does not count.
            on_progress: called with the number of texts that a batch has done.

        Returns:
            (0.0, 0) for a text without a token that can be predicted. Without a token put in front by the
            tokenizer, a text's first token has nothing to be predicted from and does not count.
        """
        items = self._items(texts, contexts or [""] * len(texts))
        results: list[Loss] = [(0.0, 0)] * len(texts)
        items.sort(key=lambda item: len(item.tokens))
        while items:
            rows = max(1, self.batch_tokens // max(1, len(items[-1].tokens)))
            batch, items = items[-rows:], items[:-rows]  # longest first: the largest batch fails first, if any
            for item, loss in zip(batch, self._batch(batch), strict=True):
                results[item.index] = (loss, len(item.tokens) - item.first)
            if on_progress:
                on_progress(len(batch))
        return results

    def perplexity(self, texts: Sequence[str]) -> float:
        """exp(mean negative log-likelihood a token) over all the texts.

        Raises:
            DetoxError: the texts have no token to predict.
        """
        return perplexity_of(self.losses(texts))

    def _items(self, texts: Sequence[str], contexts: Sequence[str]) -> list[_Item]:
        limit = getattr(self.model.config, "max_position_embeddings", None) or 2**20
        items = []
        for index, (text, context) in enumerate(zip(texts, contexts, strict=True)):
            encoded = self.tokenizer(context + text, return_offsets_mapping=True) if text else None
            if encoded is None:
                continue
            tokens: list[int] = encoded["input_ids"][:limit]  # type: ignore[index,assignment]
            spans: list[tuple[int, int]] = encoded["offset_mapping"][:limit]  # type: ignore[index,assignment]
            # A token that begins in the context and ends in the text belongs to the text.
            first = next((n for n, (_, end) in enumerate(spans) if end > len(context)), len(tokens))
            first = max(first, 1)
            if first < len(tokens):
                items.append(_Item(index, tokens, first))
        return items

    @torch.inference_mode()
    def _batch(self, items: list[_Item]) -> list[float]:
        """Padded on the right, where causal attention does not look; only positions that count get logits."""
        device = self.model.device
        width = max(len(item.tokens) for item in items)
        tokens = torch.zeros(len(items), width, dtype=torch.long)
        counts = torch.zeros(len(items), width, dtype=torch.bool)
        mask = torch.zeros(len(items), width, dtype=torch.long)
        for row, item in enumerate(items):
            tokens[row, :len(item.tokens)] = torch.tensor(item.tokens)
            counts[row, item.first:len(item.tokens)] = True
            mask[row, :len(item.tokens)] = 1
        tokens, counts, mask = tokens.to(device), counts.to(device), mask.to(device)
        equal = all(len(item.tokens) == width for item in items)
        nll = self._nll(tokens, counts, None if equal else mask)
        owner = torch.nonzero(counts)[:, 0]
        sums = torch.zeros(len(items), dtype=torch.float64, device=device).index_add_(0, owner, nll.double())
        return [float(value) for value in sums.tolist()]

    def _nll(self, tokens: Tensor, counts: Tensor, mask: Tensor | None) -> Tensor:
        """[number of counting positions] negative log-likelihoods, in row-major order."""
        before, targets = counts[:, 1:], tokens[counts]
        head = self.model.get_output_embeddings()
        if head is None or changes_logits(self.model.config):
            logits = self.model(input_ids=tokens, attention_mask=mask, use_cache=False).logits[:, :-1][before]
            return _cross_entropy(logits, targets)
        body = self.model.base_model
        hidden = body(input_ids=tokens, attention_mask=mask, use_cache=False).last_hidden_state[:, :-1][before]
        rows = max(1, _LOGITS_AT_ONCE // head.weight.shape[0])
        return torch.cat([_cross_entropy(head(part), target)
                          for part, target in zip(hidden.split(rows), targets.split(rows), strict=True)])


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none")


def perplexity_of(losses: Sequence[Loss]) -> float:
    """Token-weighted perplexity of texts' losses.

    Raises:
        DetoxError: there is no token.
    """
    total, tokens = sum(loss for loss, _ in losses), sum(count for _, count in losses)
    if not tokens:
        raise DetoxError("there is no text to measure the perplexity of", remedy="give texts of two words or more")
    return math.exp(total / tokens)
