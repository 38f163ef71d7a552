"""From logits to the next token: penalties, temperature, top-k, top-p (Holtzman et al. 2020), typical (Meister et al.
2023), in the order of TGIS, and token details.

Each request draws from a generator of its own that lives on the CPU, one number a token: its sample depends on its
seed alone, not on the other requests in the batch or on the device.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import torch
from torch import Tensor

from serving.engine.jobs import TokenDetail
from serving.engine.validation import Parameters

_NUCLEUS_GUESS = 256
OFF = float("-inf")


class Sampler:
    """Chooses one request's tokens.

    Args:
        parameters: of the request.
        prompt: its input ids, which the repetition penalty counts too.
        eos: ids that end a sequence.
    """

    def __init__(self, parameters: Parameters, prompt: Sequence[int], eos: frozenset[int]) -> None:
        self.parameters = parameters
        self._eos = sorted(eos)
        self._random = random.Random(parameters.seed)  # noqa: S311 (reproducible by design)
        self._seen = set(prompt) if parameters.repetition_penalty != 1.0 else set[int]()
        self._count = 0

    @property
    def plain(self) -> bool:
        """Whether the next token is the largest logit but for `ruled_out`, and nothing else is asked."""
        p = self.parameters
        return (p.greedy and p.repetition_penalty == 1.0 and p.length_penalty is None
                and not (p.logprobs or p.ranks or p.top_n))

    @property
    def ruled_out(self) -> list[int]:
        """The ids that may not come next: those that would end the sequence too early."""
        return self._eos if self._count < self.parameters.min_new_tokens else []

    def took(self, token: int) -> None:
        """Note the chosen token."""
        self._count += 1
        if self.parameters.repetition_penalty != 1.0:
            self._seen.add(token)

    def scores(self, logits: Tensor) -> Tensor:
        """The logits [v] of the next token as this request changes them: float32 [v], -inf where ruled out."""
        scores = self._penalised(logits.float().clone())
        if not self.parameters.greedy:
            scores = self._warped(scores)
        return scores

    def choose(self, scores: Tensor) -> Tensor:
        """A token from scores [v]: a tensor of shape []."""
        if self.parameters.greedy:
            return scores.argmax()
        # Inverse transform: double precision keeps the sum over a large vocabulary exact enough.
        mass = scores.double().softmax(-1).cumsum(-1)
        point = self._random.random() * mass[-1]
        return torch.searchsorted(mass, point, right=True).clamp(max=scores.shape[0] - 1)

    def _penalised(self, scores: Tensor) -> Tensor:
        p = self.parameters
        if self.ruled_out:
            scores[self.ruled_out] = OFF
        elif self._eos and p.length_penalty is not None and self._count > p.length_penalty[0]:
            past, factor = self._count - p.length_penalty[0], p.length_penalty[1]
            growth = math.expm1(min(past * math.log(factor), 80.0))
            eos = scores[self._eos]
            scores[self._eos] = eos + eos.abs() * growth
        if p.repetition_penalty != 1.0 and self._seen:
            ids = torch.tensor(sorted(self._seen), device=scores.device)
            seen = scores[ids]
            scores[ids] = torch.where(seen < 0, seen * p.repetition_penalty, seen / p.repetition_penalty)
        return scores.clamp_(max=torch.finfo(scores.dtype).max)

    def _warped(self, scores: Tensor) -> Tensor:
        p = self.parameters
        if p.temperature != 1.0:
            scores = scores / p.temperature
        if p.top_k:
            kept = min(p.top_k, scores.shape[0])
            scores = scores.masked_fill(scores < scores.topk(kept).values[-1], OFF)
        if p.top_p < 1.0:
            scores = scores.masked_fill(scores < _nucleus_floor(scores, p.top_p), OFF)
        if p.typical_p < 1.0:
            scores = _typical(scores, p.typical_p)
        return scores


def _nucleus_floor(scores: Tensor, top_p: float) -> Tensor:
    """The least score of the smallest set of tokens whose probabilities reach `top_p`."""
    # A full sort of a large vocabulary costs as much as a layer; the nucleus is nearly always among the first few.
    for size in (min(_NUCLEUS_GUESS, scores.shape[0]), scores.shape[0]):
        best = scores.topk(size).values
        mass = (best - scores.logsumexp(-1)).exp().cumsum(-1)
        if mass[-1] >= top_p or size == scores.shape[0]:
            break
    inside = int((mass < top_p).sum())
    return best[min(inside, size - 1)]


def _typical(scores: Tensor, mass: float) -> Tensor:
    """Keep the tokens whose information is closest to the expected one, up to `mass` of probability."""
    log = scores.log_softmax(-1)
    probability = log.exp()
    entropy = -torch.where(probability > 0, probability * log, 0.0).sum()
    distance, order = ((-log) - entropy).abs().sort()
    inside = int((probability[order].cumsum(-1) < mass).sum())
    return scores.masked_fill(distance[min(inside, len(order) - 1)] < ((-log) - entropy).abs(), OFF)


def detail(parameters: Parameters, token: int, scores: Tensor) -> TokenDetail:
    """What the request asks about a token, by the scores [v] that it was chosen from."""
    found = TokenDetail(token)
    logprobs = scores.log_softmax(-1) if parameters.logprobs else None
    if logprobs is not None:
        found.logprob = float(logprobs[token])
    if parameters.ranks:
        found.rank = int((scores > scores[token]).sum()) + 1
    if parameters.top_n:
        found.top = _best(scores, logprobs, parameters.top_n)
    return found


class PromptDetails:
    """The same for the input tokens; the first one has no prediction."""

    def __init__(self, parameters: Parameters, tokens: Sequence[int]) -> None:
        self._parameters, self._tokens = parameters, tokens
        self.found = [TokenDetail(tokens[0], logprob=math.nan if parameters.logprobs else 0.0)]

    def watch(self, logits: Tensor) -> None:
        """Take the logits [t, v] of the next t positions."""
        p, start = self._parameters, len(self.found)
        tokens = self._tokens[start : start + len(logits)]
        scores = logits[: len(tokens)].float()
        chosen = torch.tensor(tokens, device=scores.device, dtype=torch.long)[:, None]
        own = scores.gather(1, chosen)
        logprobs = (own - scores.logsumexp(-1, keepdim=True))[:, 0].tolist() if p.logprobs else [0.0] * len(tokens)
        ranks = ((scores > own).sum(-1) + 1).tolist() if p.ranks else [0] * len(tokens)
        for index, token in enumerate(tokens):
            row = scores[index]
            top = _best(row, row.log_softmax(-1) if p.logprobs else None, p.top_n) if p.top_n else []
            self.found.append(TokenDetail(token, logprobs[index], ranks[index], top))


def _best(scores: Tensor, logprobs: Tensor | None, count: int) -> list[tuple[int, float]]:
    """The best `count` tokens, more where the last place is shared, fewer where the others are ruled out."""
    best = scores.topk(min(count, scores.shape[0])).values
    floor = best[best > OFF][-1]
    ids = (scores >= floor).nonzero().squeeze(-1)[: 4 * count]
    ids = ids[scores[ids].argsort(descending=True, stable=True)]
    values = [0.0] * len(ids) if logprobs is None else logprobs[ids].tolist()
    return list(zip(ids.tolist(), values, strict=True))
