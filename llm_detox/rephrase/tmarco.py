"""TMaRCo, the rephraser of TrustyAI, token for token, and in batches across sentences.

1. For every subword i of a sentence, a copy in which token i is replaced by the text `</s><mask>`; each expert
   predicts the token at the mask, p_k.
2. score_i = Jensen-Shannon distance of the experts' predictions, the square root of
   JSD(p, q) = (KL(p | m) + KL(q | m)) / 2 with m = (p + q) / 2 and natural logarithms, divided by the sentence's
   mean; of several experts the mean over their pairs.
3. Mask where score > threshold.
4. Fill the masks from left to right, one token each:
   argmax(base[1 + i] + sum_k weight_k * expert_k[mask]). The base reads the whole original; an expert reads what
   was chosen so far, `<mask>` and, with `combine_original`, the original's tokens on the right; without them for the
   last two tokens (the published code's condition, trustyai 0.6.2).

What differs is the cost, not the outcome: copies of all sentences share batches of a token budget, decoders are cut
at the mask, one position of a row goes through the output layer, and the r-th masks of all sentences are filled
together. And `rephrase` masks with its own threshold, which the original forgets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import cast

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llm_detox.errors import DetoxError
from llm_detox.generation.batching import paired_batches
from llm_detox.rephrase.seq2seq import (
    Ids,
    Seq2SeqReader,
    fits,
    load_seq2seq,
    load_seq2seq_tokenizer,
    logits_at_masks,
)

_SENTENCES_AT_ONCE = 256
_WITHOUT_RIGHT = 2  # tokens at a sentence's end
_ROWS_AT_ONCE = 16  # of [rows, vocabulary] in float64, of which more do not fit a processor's cache


class TMaRCo:
    """Masks and refills what two experts disagree about.

    Args:
        base: a BART-like model, or its source (hub id, folder, `s3://`, `package://`).
        experts: anti-expert and expert, or more; models or sources.
        weights: one for each expert, negative for an anti-expert.
        tokenizer: of all models, or its source; by default the base's.
        batch_tokens: encoder and decoder tokens in one batch, the bound on memory.

    Raises:
        DetoxError: the weights do not fit the experts, or there are fewer than two.
    """

    def __init__(self, base: str | PreTrainedModel, experts: Sequence[str | PreTrainedModel],
                 weights: Sequence[float] = (-0.5, 0.5), *,
                 tokenizer: str | PreTrainedTokenizerBase | None = None, batch_tokens: int = 2048) -> None:
        if len(experts) < 2 or len(weights) != len(experts):
            raise DetoxError(f"{len(experts)} experts and {len(weights)} weights",
                             remedy="give at least an anti-expert and an expert, and a weight for each")
        if tokenizer is None:
            if not isinstance(base, str):
                raise DetoxError("the tokenizer is missing", remedy="pass tokenizer=... beside a loaded model")
            tokenizer = base
        self.tokenizer = load_seq2seq_tokenizer(tokenizer)
        self.base = Seq2SeqReader(load_seq2seq(base))
        self.experts = [Seq2SeqReader(load_seq2seq(expert)) for expert in experts]
        self.weights = [float(weight) for weight in weights]
        self.batch_tokens = batch_tokens

    def score(self, texts: Sequence[str]) -> list[list[float]]:
        """For each text the score of each subword (`tokenizer.tokenize`): 1 is the text's average.

        A text in which the experts agree everywhere scores 0 throughout; an empty text has no scores.

        Raises:
            DetoxError: a text is longer than the models can read.
        """
        copies = [self._copies(text) for text in texts]
        distances = self._distances([copy for group in copies for copy in group])
        return [_normalised(rows).tolist() for rows in distances.split([len(group) for group in copies])]

    def mask(self, texts: Sequence[str], threshold: float = 1.2, *, scores: Sequence[Sequence[float]] | None = None,
             ) -> list[str]:
        """The texts with each subword that scores over the threshold replaced by the mask token."""
        scores = self.score(texts) if scores is None else scores
        return [self._text([self.tokenizer.mask_token if score > threshold else token
                            for token, score in zip(self.tokenizer.tokenize(text), row, strict=True)])
                for text, row in zip(texts, scores, strict=True)]

    def rephrase(self, texts: Sequence[str], threshold: float = 1.2, combine_original: bool = False, *,
                 scores: Sequence[Sequence[float]] | None = None) -> list[str]:
        """The texts with each masked subword replaced by the product of base and experts.

        Args:
            threshold: mask over it; a text without such a subword comes back as it is.
            combine_original: the experts see the original's tokens right of the mask.
            scores: what `score` gave, to save the work.
        """
        scores = self.score(texts) if scores is None else scores
        masked = self.mask(texts, threshold, scores=scores)
        rewrites = list(texts)
        over = [i for i, row in enumerate(scores) if texts[i].strip() and any(score > threshold for score in row)]
        for first in range(0, len(over), _SENTENCES_AT_ONCE):
            group = over[first: first + _SENTENCES_AT_ONCE]
            fillings = [_Filling(self._tokenized(masked[i]), self._ids(texts[i])) for i in group]
            self._fill(fillings, combine_original)
            for i, filling in zip(group, fillings, strict=True):
                rewrites[i] = str(self.tokenizer.decode(
                    filling.chosen, clean_up_tokenization_spaces=True, skip_special_tokens=True))
        return rewrites

    def fits(self, text: str) -> bool:
        """Whether the models can read the text and its copies."""
        return fits(self.tokenizer(text)["input_ids"], [reader.model for reader in (self.base, *self.experts)])

    def _copies(self, text: str) -> list[tuple[Ids, int]]:
        """For each subword the ids of the copy that masks it, and the mask's index."""
        tokens = self.tokenizer.tokenize(text)
        replacement = f"{self.tokenizer.eos_token}{self.tokenizer.mask_token}"
        copies = []
        for i in range(len(tokens)):
            ids = self._ids(self._text([*tokens[:i], replacement, *tokens[i + 1:]]))
            copies.append((ids, self._mask_index(ids, tokens[:i].count(str(self.tokenizer.mask_token)))))
        return copies

    def _distances(self, copies: Sequence[tuple[Ids, int]]) -> Tensor:
        """Jensen-Shannon distances at the masks, float64 [copies, pairs of experts]."""
        pairs = list(combinations(range(len(self.experts)), 2))
        distances = torch.zeros(len(copies), len(pairs), dtype=torch.float64)
        for batch, logits in logits_at_masks(self.experts, copies, self.batch_tokens):
            for rows, *parts in zip(torch.tensor(batch).split(_ROWS_AT_ONCE),
                                    *(one.split(_ROWS_AT_ONCE) for one in logits), strict=True):
                logs = [part.double().log_softmax(-1) for part in parts]
                for column, (p, q) in enumerate(pairs):
                    distances[rows, column] = jensen_shannon_distance(logs[p], logs[q].to(logs[p].device)).cpu()
        return distances

    def _fill(self, fillings: Sequence[_Filling], combine_original: bool) -> None:
        self._read_base(fillings)
        while open_ones := [filling for filling in fillings if filling.advance(self.tokenizer)]:
            reads = []
            for filling in open_ones:
                right = filling.right() if combine_original else []
                before = filling.chosen.count(int(self.tokenizer.mask_token_id))
                ids = self._ids(self._text(self.tokenizer.convert_ids_to_tokens(
                    [*filling.chosen, self.tokenizer.mask_token_id, *right])))
                reads.append((ids, self._mask_index(ids, before)))
            for batch, logits in logits_at_masks(self.experts, reads, self.batch_tokens):
                product = torch.stack([open_ones[i].base[open_ones[i].position] for i in batch])
                for weight, one in zip(self.weights, logits, strict=True):
                    product = product + weight * one.to(product.device)
                for i, token in zip(batch, product.argmax(-1).tolist(), strict=True):
                    open_ones[i].choose(token)

    def _read_base(self, fillings: Sequence[_Filling]) -> None:
        """The base's logits where a mask will be filled, from one reading of each original.

        A masked text may have more tokens than the original; there the last reading counts, where the published code
        fails.
        """
        mask = self.tokenizer.mask_token
        places = [[i for i, token in enumerate(filling.masked) if token == mask] for filling in fillings]
        sizes = [(len(filling.original), 2 + max(row, default=0))
                 for filling, row in zip(fillings, places, strict=True)]
        for batch in paired_batches(sizes, self.batch_tokens):
            rows = self.base.logits_at_all(
                [fillings[i].original for i in batch],
                [[min(1 + place, len(fillings[i].original) - 1) for place in places[i]] or [0] for i in batch])
            for i, logits in zip(batch, rows, strict=True):
                fillings[i].base = dict(zip(places[i], logits, strict=False))

    def _tokenized(self, text: str) -> list[str]:
        return list(self.tokenizer.tokenize(text))

    def _text(self, tokens: Sequence[str]) -> str:
        return str(self.tokenizer.convert_tokens_to_string(list(tokens))) if tokens else ""

    def _ids(self, text: str) -> Ids:
        ids: Ids = self.tokenizer(text)["input_ids"]
        limits = [reader.max_tokens for reader in (self.base, *self.experts) if reader.max_tokens]
        if limits and len(ids) > min(limits):
            raise DetoxError(f"a text of {len(ids)} tokens with its mask; the models read {min(limits)}",
                             place=text[:60], remedy="split the text, or leave it out")
        return ids

    def _mask_index(self, ids: Ids, masks_before: int) -> int:
        places = [i for i, token in enumerate(ids) if token == self.tokenizer.mask_token_id]
        return places[masks_before]


@dataclass
class _Filling:
    """One sentence while its masks are being filled."""

    masked: list[str]
    original: Ids
    chosen: Ids = field(default_factory=list)
    base: dict[int, Tensor] = field(default_factory=dict)

    @property
    def position(self) -> int:
        """The subword that is decided next."""
        return len(self.chosen)

    def advance(self, tokenizer: PreTrainedTokenizerBase) -> bool:
        """Take over what is not masked; whether a mask is left to fill."""
        while self.position < len(self.masked):
            token = self.masked[self.position]
            if token == tokenizer.mask_token:
                return True
            self.chosen += cast("Ids", tokenizer.convert_tokens_to_ids([token]))
        return False

    def right(self) -> Ids:
        """The original's tokens on the right, as far as the published code gives them to the experts."""
        return self.original[1:-1][self.position + 1:] if self.position < len(self.masked) - _WITHOUT_RIGHT else []

    def choose(self, token: int) -> None:
        self.chosen.append(token)


def jensen_shannon_distance(p: Tensor, q: Tensor) -> Tensor:
    """Square root of the Jensen-Shannon divergence, natural logarithm, in [0, sqrt(ln 2)].

    Args:
        p, q: log-probabilities of shape [rows, outcomes].

    Returns:
        Tensor of shape [rows].
    """
    shares_p, shares_q = p.exp(), q.exp()
    m = ((shares_p + shares_q) / 2).clamp(min=torch.finfo(p.dtype).tiny).log()
    divergence = ((shares_p * (p - m)).sum(-1) + (shares_q * (q - m)).sum(-1)) / 2
    return divergence.clamp(min=0).sqrt()


def _normalised(distances: Tensor) -> Tensor:
    """[subwords, pairs] -> [subwords]: each pair's distances over their mean, then the mean over pairs."""
    if not len(distances):
        return torch.zeros(0, dtype=torch.float64)
    means = distances.mean(0)
    return (distances / torch.where(means > 0, means, torch.ones_like(means))).mean(-1)
