"""From logits to the next token, for batches of continuations, for one that is watched, and for a server's requests.

The penalties, temperature, top-k, nucleus (Holtzman et al. 2020) and typical set (Meister et al. 2023) come in the
order of TGIS. A token is drawn in one of two ways:

- `draw`: a row's noise is a hash of its key, the step and the token, so that a sample depends neither on the batch nor
  on the order, and two models asked alike share their noise;
- `Sampler`: each request has a generator of its own that lives on the CPU and gives one number a token, so that its
  sample depends on its seed alone, not on the other requests in the batch or on the device.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Sequence

import torch
from torch import Tensor

from llm_detox.generation.tokens import SamplerSettings, TokenDetail

_MASK32 = 0xFFFFFFFF
_FIRST_CANDIDATES = 256  # nearly every nucleus of p = .9 fits; the others are looked at again with more
OFF = float("-inf")


def draw(logits: Tensor, noise: Tensor, step: int, *, top_p: float, temperature: float) -> Tensor:
    """One token for each row by the Gumbel-max rule over the nucleus.

    Args:
        logits: [b, v].
        noise: [b] int64, the rows' noise keys (see `row_key`).
        step: the number of the token within its continuation.

    Returns:
        [b] token ids. The nucleus is the smallest set of most likely tokens with at least `top_p` of the mass.
    """
    scores = logits.float() / temperature
    total = torch.logsumexp(scores, dim=1, keepdim=True)
    tokens = torch.empty(len(logits), dtype=torch.long, device=logits.device)
    rows = torch.arange(len(logits), device=logits.device)
    count = _FIRST_CANDIDATES
    while len(rows):
        log_probs, candidates, settled = _nucleus(scores[rows], total[rows], top_p, count)
        best = (log_probs.double() + gumbel(noise[rows], step, candidates)).argmax(1, keepdim=True)
        tokens[rows[settled]] = candidates.gather(1, best).squeeze(1)[settled]
        rows = rows[~settled]
        count *= 16
    return tokens


def _nucleus(scores: Tensor, total: Tensor, top_p: float, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The most likely tokens of each row, at most `count` of them.

    A full sort of a large vocabulary costs as much as a layer; the nucleus is nearly always among the first few.

    Args:
        scores: [..., v] log-probabilities but for a constant.
        total: [..., 1] the logarithm of their summed exponentials.

    Returns:
        their log-probabilities [..., n], -inf for those outside the nucleus, their ids [..., n], and whether the whole
        nucleus is among them [...].
    """
    count = min(count, scores.shape[-1])
    values, ids = torch.topk(scores, count)
    log_probs = values - total
    chances = log_probs.exp()
    before = chances.cumsum(-1) - chances
    settled = (before[..., -1] >= top_p) | (count == scores.shape[-1])
    return log_probs.masked_fill(before >= top_p, OFF), ids, settled


def gumbel(noise: Tensor, step: int, tokens: Tensor) -> Tensor:
    """Standard Gumbel noise [b, n] float64, a pure function of the row's key, the step and the token id.

    Args:
        noise: [b] int64.
        tokens: [b, n] token ids.
    """
    low = _scramble((noise & _MASK32) ^ (step * 0x9E3779B9 & _MASK32))
    high = _scramble(((noise >> 32) & _MASK32) ^ low)
    bits = _scramble(_scramble(tokens ^ low[:, None]) ^ high[:, None])
    uniform = (bits.double() + 0.5) / 2**32
    return -torch.log(-torch.log(uniform))


def _scramble(x: Tensor) -> Tensor:
    """A good 32-bit integer hash (lowbias32 by C. Wellons), in int64 arithmetic."""
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & _MASK32
    x = x ^ (x >> 15)
    x = (x * 0x846CA68B) & _MASK32
    return x ^ (x >> 16)


def row_key(seed: int, key: str, number: int) -> int:
    """64 signed bits that name one continuation in the noise."""
    digest = hashlib.sha256(f"{seed}\0{key}\0{number}".encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


class Sampler:
    """Chooses one request's tokens.

    Args:
        settings: of the request.
        prompt: its input ids, which the repetition penalty counts too.
        eos: ids that end a sequence.
    """

    def __init__(self, settings: SamplerSettings, prompt: Sequence[int], eos: frozenset[int]) -> None:
        self.settings = settings
        self._eos = sorted(eos)
        self._random = random.Random(settings.seed)  # noqa: S311 (reproducible by design)
        self._seen = set(prompt) if settings.repetition_penalty != 1.0 else set[int]()
        self._count = 0

    @property
    def plain(self) -> bool:
        """Whether the next token is the largest logit but for `ruled_out`, and nothing else is asked."""
        p = self.settings
        return (p.greedy and p.repetition_penalty == 1.0 and p.length_penalty is None
                and not (p.logprobs or p.ranks or p.top_n))

    @property
    def ruled_out(self) -> list[int]:
        """The ids that may not come next: those that would end the sequence too early."""
        return self._eos if self._count < self.settings.min_new_tokens else []

    def took(self, token: int) -> None:
        """Note the chosen token."""
        self._count += 1
        if self.settings.repetition_penalty != 1.0:
            self._seen.add(token)

    def scores(self, logits: Tensor) -> Tensor:
        """The logits [v] of the next token as this request changes them: float32 [v], -inf where ruled out."""
        scores = self._penalised(logits.float().clone())
        if not self.settings.greedy:
            scores = self._warped(scores)
        return scores

    def choose(self, scores: Tensor) -> Tensor:
        """A token from scores [v]: a tensor of shape []."""
        if self.settings.greedy:
            return scores.argmax()
        # Inverse transform: double precision keeps the sum over a large vocabulary exact enough.
        mass = scores.double().softmax(-1).cumsum(-1)
        point = self._random.random() * mass[-1]
        return torch.searchsorted(mass, point, right=True).clamp(max=scores.shape[0] - 1)

    def _penalised(self, scores: Tensor) -> Tensor:
        p = self.settings
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
        p = self.settings
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
    """The least score of the nucleus of scores [v]: a tensor of shape []."""
    total = scores.logsumexp(-1, keepdim=True)
    for count in (_FIRST_CANDIDATES, scores.shape[0]):
        log_probs, ids, settled = _nucleus(scores, total, top_p, count)
        if settled:
            break
    return scores[ids[int((log_probs > OFF).sum()) - 1]]


def _typical(scores: Tensor, mass: float) -> Tensor:
    """Keep the tokens whose information is closest to the expected one, up to `mass` of probability."""
    log = scores.log_softmax(-1)
    probability = log.exp()
    entropy = -torch.where(probability > 0, probability * log, 0.0).sum()
    distance, order = ((-log) - entropy).abs().sort()
    inside = int((probability[order].cumsum(-1) < mass).sum())
    return scores.masked_fill(distance[min(inside, len(order) - 1)] < ((-log) - entropy).abs(), OFF)


def detail(settings: SamplerSettings, token: int, scores: Tensor) -> TokenDetail:
    """What the request asks about a token, by the scores [v] that it was chosen from."""
    asked = TokenDetail(token)
    logprobs = scores.log_softmax(-1) if settings.logprobs else None
    if logprobs is not None:
        asked.logprob = float(logprobs[token])
    if settings.ranks:
        asked.rank = int((scores > scores[token]).sum()) + 1
    if settings.top_n:
        asked.top = _best(scores, logprobs, settings.top_n)
    return asked


class PromptDetails:
    """The same for the input tokens; the first one has no prediction."""

    def __init__(self, settings: SamplerSettings, tokens: Sequence[int]) -> None:
        self._settings, self._tokens = settings, tokens
        self.details = [TokenDetail(tokens[0], logprob=math.nan if settings.logprobs else 0.0)]

    def watch(self, logits: Tensor) -> None:
        """Take the logits [t, v] of the next t positions."""
        p, start = self._settings, len(self.details)
        tokens = self._tokens[start : start + len(logits)]
        scores = logits[: len(tokens)].float()
        chosen = torch.tensor(tokens, device=scores.device, dtype=torch.long)[:, None]
        own = scores.gather(1, chosen)
        logprobs = (own - scores.logsumexp(-1, keepdim=True))[:, 0].tolist() if p.logprobs else [0.0] * len(tokens)
        ranks = ((scores > own).sum(-1) + 1).tolist() if p.ranks else [0] * len(tokens)
        for index, token in enumerate(tokens):
            row = scores[index]
            top = _best(row, row.log_softmax(-1) if p.logprobs else None, p.top_n) if p.top_n else []
            self.details.append(TokenDetail(token, logprobs[index], ranks[index], top))


def _best(scores: Tensor, logprobs: Tensor | None, count: int) -> list[tuple[int, float]]:
    """The best `count` tokens, more where the last place is shared, fewer where the others are ruled out."""
    best = scores.topk(min(count, scores.shape[0])).values
    floor = best[best > OFF][-1]
    ids = (scores >= floor).nonzero().squeeze(-1)[: 4 * count]
    ids = ids[scores[ids].argsort(descending=True, stable=True)]
    values = [0.0] * len(ids) if logprobs is None else logprobs[ids].tolist()
    return list(zip(ids.tolist(), values, strict=True))
