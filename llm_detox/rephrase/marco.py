"""MaRCo (Hallinan et al. 2023, "Detoxifying Text with MaRCo"): mask by disagreement, rewrite by product of experts.

1. Mask each word w of a text in turn; the experts' predictions p, q at the mask disagree by
   d_w = (KL(p | q) + KL(q | p)) / 2. Words whose d_w is at least the threshold times the text's mean are masked.
2. Rewrite the whole text token by token, greedily, behind the tokens `</s><s>` that BART begins with:
   base(original) / T + alpha_e * expert(masked) - alpha_a * anti(masked),
   each with its own encoder text and its own key-value cache, over what all have chosen so far.

Where paper and published code differ, this is the code: punctuation is no word, neither masked nor part of the mean;
the penalty on repetition counts the two first tokens, so that `</s>`, the end, is penalised; and the length of 128
tokens includes them.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutput

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


@dataclass(frozen=True)
class Decoding:
    """Weights of the anti-expert and expert, the base's temperature, the penalty on repetition (Keskar et al. 2019)."""

    anti_weight: float
    expert_weight: float
    temperature: float
    repetition_penalty: float = 1.0
    max_new_tokens: int = 126


# The paper's settings for its three data sets.
PRESETS: dict[str, Decoding] = {
    "magr": Decoding(1.5, 4.25, 2.5, 1.0),
    "sbf": Decoding(1.5, 5.0, 2.9, 1.5),
    "dynahate": Decoding(1.5, 4.75, 2.5, 1.5),
}


class MaRCo:
    """Masks and rewrites with a base, an expert and an anti-expert of the BART family.

    Args:
        base, expert, anti_expert: models, or their sources.
        tokenizer: of all three, or its source; by default the base's.
        decoding: a preset's name, or the numbers.
        batch_tokens: tokens in one batch, the bound on memory.
    """

    def __init__(self, base: str | PreTrainedModel, expert: str | PreTrainedModel, anti_expert: str | PreTrainedModel,
                 *, tokenizer: str | PreTrainedTokenizerBase | None = None,
                 decoding: Literal["magr", "sbf", "dynahate"] | Decoding = "magr", batch_tokens: int = 4096) -> None:
        if tokenizer is None:
            if not isinstance(base, str):
                raise DetoxError("the tokenizer is missing", remedy="pass tokenizer=... beside a loaded model")
            tokenizer = base
        self.tokenizer = load_seq2seq_tokenizer(tokenizer)
        self.base, self.expert, self.anti = (load_seq2seq(model) for model in (base, expert, anti_expert))
        self.decoding = PRESETS[decoding] if isinstance(decoding, str) else decoding
        self.batch_tokens = batch_tokens

    def score(self, texts: Sequence[str]) -> list[list[float]]:
        """For each text the disagreement over each word (see `words`), 1 being the text's average."""
        copies: list[tuple[Ids, int]] = []
        spans = [words(text) for text in texts]
        for text, places in zip(texts, spans, strict=True):
            for place in places:
                ids = self._ids(self._with_masks(text, [place]))
                copies.append((ids, ids.index(int(self.tokenizer.mask_token_id))))
        expert, anti = Seq2SeqReader(self.expert), Seq2SeqReader(self.anti)
        disagreements = torch.zeros(len(copies), dtype=torch.float64)
        for batch, logits in logits_at_masks((expert, anti), copies, self.batch_tokens):
            p, q = (one.cpu().double().log_softmax(-1) for one in logits)
            disagreements[batch] = symmetrised_kl(p, q)
        rows = disagreements.split([len(places) for places in spans])
        return [(row / row.mean() if len(row) and row.mean() > 0 else row).tolist() for row in rows]

    def mask(self, texts: Sequence[str], threshold: float = 1.2) -> list[str]:
        """The texts with each word that reaches the threshold replaced by the mask token."""
        return [
            self._with_masks(text, [place for place, score in zip(words(text), row, strict=True) if score >= threshold])
            for text, row in zip(texts, self.score(texts), strict=True)
        ]

    def _with_masks(self, text: str, places: Sequence[tuple[int, int]]) -> str:
        for start, end in reversed(places):
            text = text[:start] + str(self.tokenizer.mask_token) + text[end:]
        return text

    def rephrase(self, texts: Sequence[str], threshold: float = 1.2) -> list[str]:
        """The texts rewritten; one in which nothing is masked comes back as it is."""
        masked = self.mask(texts, threshold)
        rewrites = list(texts)
        todo = [i for i, text in enumerate(masked) if text != texts[i]]
        originals, gapped = {i: self._ids(texts[i]) for i in todo}, {i: self._ids(masked[i]) for i in todo}
        sizes = [(len(originals[i]), self.decoding.max_new_tokens) for i in todo]
        for batch in paired_batches(sizes, self.batch_tokens):
            rows = [todo[k] for k in batch]
            for i, ids in zip(rows, self._decode([originals[i] for i in rows], [gapped[i] for i in rows]), strict=True):
                rewrites[i] = str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()
        return rewrites

    def fits(self, text: str) -> bool:
        """Whether the models can read the text."""
        return fits(self._ids(text), (self.base, self.expert, self.anti))

    @torch.inference_mode()
    def _decode(self, originals: Sequence[Ids], masked: Sequence[Ids]) -> list[Ids]:
        decoding = self.decoding
        streams = [
            (1 / decoding.temperature, _Stream(self.base, originals)),
            (decoding.expert_weight, _Stream(self.expert, masked)),
            (-decoding.anti_weight, _Stream(self.anti, masked)),
        ]
        end = int(self.tokenizer.eos_token_id)
        beginning = [int(self.base.config.decoder_start_token_id), int(self.tokenizer.bos_token_id)]
        chosen: list[Ids] = [[*beginning] for _ in originals]
        last = torch.tensor([beginning] * len(originals))
        over = torch.zeros(len(originals), dtype=torch.bool)
        for _ in range(decoding.max_new_tokens):
            product = torch.stack([weight * stream.next_logits(last) for weight, stream in streams]).sum(0)
            token = penalised(product, chosen, decoding.repetition_penalty).argmax(-1)
            token[over] = end
            over |= token == end
            for ids, one, ended in zip(chosen, token.tolist(), over.tolist(), strict=True):
                if not ended:
                    ids.append(one)
            if over.all():
                break
            last = token.unsqueeze(-1)
        return [ids[len(beginning):] for ids in chosen]

    def _ids(self, text: str) -> Ids:
        ids: Ids = self.tokenizer(text)["input_ids"]
        return ids


class _Stream:
    """One model decoding beside the others: its encoder text read once, its cache growing by a token a step."""

    def __init__(self, model: PreTrainedModel, texts: Sequence[Ids]) -> None:
        self._model: Any = model
        width = max(len(ids) for ids in texts)
        device = model.device
        padded = torch.tensor([ids + [0] * (width - len(ids)) for ids in texts]).to(device)
        self._mask = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids in texts]).to(device)
        encoder: Any = model.get_encoder()
        self._encoded = BaseModelOutput(
            last_hidden_state=encoder(input_ids=padded, attention_mask=self._mask).last_hidden_state)
        self._cache: Any = None

    def next_logits(self, last: Tensor) -> Tensor:
        """Float32 [rows, vocabulary] on the CPU, after the tokens chosen since the last call, [rows, tokens]."""
        out = self._model(encoder_outputs=self._encoded, attention_mask=self._mask, past_key_values=self._cache,
                          decoder_input_ids=last.to(self._mask.device), use_cache=True)
        self._cache = out.past_key_values
        logits: Tensor = out.logits[:, -1].float().cpu()
        return logits


def words(text: str) -> list[tuple[int, int]]:
    """Where each word starts and ends, without the punctuation around it; punctuation alone is no word."""
    places = []
    for match in re.finditer(r"\S+", text):
        word = match.group().lstrip(string.punctuation)
        if core := word.rstrip(string.punctuation):
            start = match.end() - len(word)
            places.append((start, start + len(core)))
    return places


def penalised(logits: Tensor, chosen: Sequence[Ids], penalty: float) -> Tensor:
    """Divide the positive and multiply the negative logits of tokens chosen before by the penalty."""
    if penalty == 1:
        return logits
    logits = logits.clone()
    for row, ids in enumerate(chosen):
        seen = torch.tensor(sorted(set(ids)), dtype=torch.long)
        values = logits[row, seen]
        logits[row, seen] = torch.where(values > 0, values / penalty, values * penalty)
    return logits


def symmetrised_kl(p: Tensor, q: Tensor) -> Tensor:
    """(KL(p | q) + KL(q | p)) / 2 of log-probabilities [rows, outcomes], in nats; [rows]."""
    return ((p.exp() - q.exp()) * (p - q)).sum(-1) / 2
