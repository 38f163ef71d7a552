"""MaRCo's two ideas (Hallinan et al. 2023, mask and rewrite by experts) for decoder-only models.

Any causal model can be base, and any two readings of text can be experts: a second prompt for the same model,
or LoRA adapters on it. Since such a model sees the left context alone, the right context comes in afterwards:

1. mask the fewest words without which the scorer accepts the text (absolute, so harmless words stay);
2. propose words for every gap from the product of experts in left context,
   log p(w) = log p_base(w | left) + sum_k weight_k * log p_k(w | left);
3. combine the proposals of a text's gaps, leaving a gap empty among them, best products first;
4. rank whole sentences by the base model's likelihood, which reads the right context too.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from peft import PeftModel
from torch import Tensor

from llm_detox.generation.likelihood import LikelihoodReader
from llm_detox.generation.models import model_folder, put_adapter
from llm_detox.rephrase.acceptance import Scorer, perplexity
from llm_detox.rephrase.words import deletions, smallest_masks, spans, without

Option = tuple[str, float]


class NextTokenModel(Protocol):
    """A reading of text that predicts its next token."""

    def next_log_probs(self, prefixes: Sequence[Sequence[int]], places: Sequence[Sequence[int]]) -> list[Tensor]:
        """See `LikelihoodReader.next_log_probs`."""
        ...


class Prompted:
    """The same model reading the text after a prompt: an expert or anti-expert without training."""

    def __init__(self, engine: LikelihoodReader, prompt: str) -> None:
        self._engine = engine
        self._ids = engine.ids(prompt)

    def next_log_probs(self, prefixes: Sequence[Sequence[int]], places: Sequence[Sequence[int]]) -> list[Tensor]:
        shift = len(self._ids)
        return self._engine.next_log_probs(
            [[*self._ids, *prefix] for prefix in prefixes], [[shift + place for place in row] for row in places])


@dataclass(frozen=True)
class Masking:
    """Which words to mask: see `smallest_masks`."""

    below: float
    largest_share: float = 0.5


class CausalRewriter:
    """Rewrites with a causal model's own means.

    Args:
        engine: the base model.
        scorer: finds the toxic words, and refuses toxic proposals.
        masking: how toxic the rest may be, and how much may be masked.
        experts: (weight, reader); positive for an expert, negative for an anti-expert.
        proposals: words proposed for each gap.
        candidates: rewrites of each text.
        fill_above: gaps are filled only where leaving them empty makes the text more than so many times as
            perplexing; 0 always fills.
    """

    name = "causal"

    def __init__(self, engine: LikelihoodReader, scorer: Scorer, masking: Masking, *,
                 experts: Sequence[tuple[float, NextTokenModel]] = (), proposals: int = 4, candidates: int = 4,
                 fill_above: float = 1.0) -> None:
        self._engine = engine
        self._scorer = scorer
        self._masking = masking
        self._experts = list(experts)
        self._proposals = proposals
        self._candidates = candidates
        self._fill_above = fill_above
        self._word_ids = _word_ids(engine)

    def candidates(self, texts: Sequence[str]) -> list[list[str]]:
        """Deletion first, then fillings by falling product of experts; not yet ranked by the right context."""
        masks = smallest_masks(self._scorer, texts, below=self._masking.below,
                               largest_share=self._masking.largest_share)
        masked = {i: _Masked(texts[i], mask) for i, mask in enumerate(masks) if mask}
        candidates = [masked[i].deletions if i in masked else [] for i in range(len(texts))]
        places = [self._places(one) for one in masked.values()]
        # One reading of original and deletion gives their likelihoods and the base's view of every gap.
        base = self._engine.read([[one.text, one.deletions[-1]] for one in masked.values()], places)
        readings = dict(zip(masked, base, strict=True))
        worth = [i for i in masked if self._reads_worse(masked[i])]
        proposals = self._propose([masked[i] for i in worth], [readings[i] for i in worth])
        for i, gaps in zip(worth, proposals, strict=True):
            candidates[i] = self._combine(masked[i], gaps)
        return candidates

    def _reads_worse(self, one: _Masked) -> bool:
        before, after = self._engine.variant_losses([[one.text, one.deletions[-1]]])[0]
        return perplexity(after) > self._fill_above * perplexity(before)

    def _propose(self, masked: Sequence[_Masked], base: Sequence[Tensor]) -> list[list[list[Option]]]:
        """For each text and gap, the words proposed with their log product."""
        products = [reading[:, self._word_ids.to(reading.device)] for reading in base]
        if self._experts:
            prefixes = [self._engine.ids(one.deletions[-1]) for one in masked]
            places = [self._places(one) for one in masked]
            for weight, reader in self._experts:
                views = reader.next_log_probs(prefixes, places)
                products = [product + weight * view[:, self._word_ids.to(view.device)]
                            for product, view in zip(products, views, strict=True)]
        # Toxic proposals are refused below, so twice as many are looked at.
        pool = [product.topk(min(2 * self._proposals, product.shape[-1])) for product in products]
        words = [[[self._word(int(k)) for k in gap] for gap in top.indices] for top in pool]
        harmless = self._harmless({word for row in words for gap in row for word in gap})
        return [
            [[(word, float(value)) for word, value in zip(gap, values, strict=True) if word in harmless]
             [: self._proposals] for gap, values in zip(row, top.values, strict=True)]
            for row, top in zip(words, pool, strict=True)
        ]

    def _word(self, k: int) -> str:
        return str(self._engine.tokenizer.decode(int(self._word_ids[k]))).strip()

    def _places(self, one: _Masked) -> list[int]:
        """For each gap, the index of the last token before it in the deletion."""
        words = one.text.split()
        lefts = [without(" ".join(words[:start]), one.mask & frozenset(range(start))) for start, _ in one.spans]
        return [len(self._engine.ids(left)) - 1 for left in lefts]

    def _combine(self, one: _Masked, gaps: list[list[Option]]) -> list[str]:
        beams: list[tuple[float, dict[int, str]]] = [(0.0, {})]
        for (start, _), options in zip(one.spans, gaps, strict=True):
            # An empty gap costs as much as the best word: neither is preferred before the right context is read.
            empty = max((value for _, value in options), default=0.0)
            grown = [(value + empty, words) for value, words in beams]
            grown += [(value + more, {**words, start: word}) for value, words in beams for word, more in options]
            beams = heapq.nlargest(4 * self._candidates, grown, key=lambda beam: beam[0])
        fillings = [without(one.text, one.mask, words) for _, words in beams if words]
        return list(dict.fromkeys(one.deletions + fillings))[: self._candidates]

    def _harmless(self, words: set[str]) -> set[str]:
        order = sorted(words)
        return {word for word, score in zip(order, self._scorer.score(order), strict=True)
                if score is not None and score < self._masking.below}


class _Masked:
    """One text with its mask."""

    def __init__(self, text: str, mask: frozenset[int]) -> None:
        self.text = text
        self.mask = mask
        self.spans = spans(mask)
        self.deletions = deletions(text, mask)


def _word_ids(engine: LikelihoodReader) -> Tensor:
    """Token ids that are a whole lower-case word with its space in front."""
    tokens = engine.tokenizer.convert_ids_to_tokens(list(range(len(engine.tokenizer))))
    words = [i for i, token in enumerate(tokens)
             if token and token[0] in "Ġ▁" and len(token) > 2 and token[1:].isascii() and token[1:].isalpha()
             and token[1:].islower()]
    return torch.tensor(words, dtype=torch.long)


class AdapterReader:
    """The base with one of its adapters switched on while it reads."""

    def __init__(self, engine: LikelihoodReader, adapted: PeftModel, name: str) -> None:
        self._engine = engine
        self._adapted: Any = adapted
        self._name = name

    def next_log_probs(self, prefixes: Sequence[Sequence[int]], places: Sequence[Sequence[int]]) -> list[Tensor]:
        """See `LikelihoodReader.next_log_probs`."""
        self._adapted.base_model.enable_adapter_layers()
        self._adapted.set_adapter(self._name)
        try:
            return self._engine.next_log_probs(prefixes, places)
        finally:
            self._adapted.base_model.disable_adapter_layers()


def adapter_readers(engine: LikelihoodReader, sources: Mapping[str, str]) -> dict[str, AdapterReader]:
    """Put adapters on the engine's model, switched off, and give a reader for each.

    Args:
        sources: name -> adapter folder (hub id, folder, `s3://`).

    Raises:
        DetoxError: an adapter does not fit the model.
    """
    adapted: PeftModel | None = None
    for name, source in sources.items():
        adapted = put_adapter(engine.model if adapted is None else adapted, model_folder(source), name=name)
    if adapted is None:
        return {}
    adapted.eval()
    network: Any = adapted
    network.base_model.disable_adapter_layers()
    return {name: AdapterReader(engine, adapted, name) for name in sources}
