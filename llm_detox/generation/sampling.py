"""Sampled continuations at full speed: the prompt is computed once for all of its continuations.

The noise of every draw is a hash of (seed, key, continuation, step, token), so the sample depends neither on the batch
size, nor on the order of the prompts, nor on the shard that a prompt falls into. Two models asked with the same seed
and keys share their noise, which makes paired differences between them tighter.

The key-value cache has room for the whole continuation from the start: transformers' own layers grow by concatenation,
which copies every row's history in every layer at every step.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from threading import Event
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicLayer

from llm_detox.data.records import record_id
from llm_detox.errors import DetoxError
from llm_detox.generation.batching import copied_batches
from llm_detox.generation.models import positions
from llm_detox.generation.next_token import draw, row_key
from llm_detox.generation.parallel import run_in_parallel
from llm_detox.generation.tokens import Vocabulary
from llm_detox.progress import say
from llm_detox.recipe.evaluation import SamplingSection

_MOST_AT_ONCE = 8  # batches side by side on a CPU
_DROP_SHARE = 0.2  # ended rows leave the batch when they are at least this share: moving the cache costs too


@dataclass(frozen=True)
class Guide:
    """A second model that reads along: a token is drawn by p x q ^ weight, q being the guide's probability.

    It sees the continuation behind its own context, not behind the prompt. Where the continuation ends is none of its
    business: the end counts as a token does in the mean, by the negative entropy of q.

    Args:
        model: of the vocabulary of the model that is guided, and on its device.
        context: token ids, at least one.
    """

    model: PreTrainedModel
    context: list[int]
    weight: float

    def check(self, new_tokens: int) -> None:
        """Refuse continuations that the guide cannot read along to the end.

        Raises:
            DetoxError: they are too long for it.
        """
        longest = positions(self.model.config)
        if longest and len(self.context) + new_tokens > longest:
            raise DetoxError(f"the guide reads {longest} tokens, fewer than its context and {new_tokens} new ones",
                             place="max_new_tokens", remedy="ask for fewer new tokens")

    def product(self, logits: Tensor, guiding: Tensor, stops: Tensor) -> Tensor:
        """Logits of the product, float32 [b, v], from those of both models.

        Output layers of one vocabulary may be padded to different sizes: what is behind the shorter one is no token.
        """
        size = min(logits.shape[-1], guiding.shape[-1])
        log_q = guiding[:, :size].float().log_softmax(-1)
        log_q[:, stops] = -torch.special.entr(log_q.exp()).sum(-1, keepdim=True)
        return logits[:, :size].float() + self.weight * log_q


@dataclass
class _Work:
    """Some continuations of one prompt: those numbered `first` .. `first + count - 1`."""

    prompt: int
    tokens: list[int]
    key: str
    first: int
    count: int


def sample_continuations(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], *, k: int,
    sampling: SamplingSection, seed: int, keys: Sequence[str] | None = None, guide: Guide | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> list[list[str]]:
    """Draw `k` continuations for every prompt (nucleus sampling, Holtzman et al. 2020).

    Args:
        model: a causal language model in eval mode.
        tokenizer: the model's tokenizer.
        prompts: texts to continue; none may be empty unless the tokenizer puts a token before them.
        k: continuations for each prompt.
        sampling: nucleus, temperature, length, and `batch_tokens` that bound a batch.
        seed: of the whole run.
        keys: name of each prompt in the noise; the default is the id of its text.
        guide: reads along, of the same vocabulary.
        on_progress: called with the number of continuations that a batch has finished.

    Returns:
        For each prompt, in order, its `k` continuations: text without special tokens, leading space kept.

    Raises:
        DetoxError: a prompt has no tokens.
    """
    results: list[list[str]] = [[] for _ in prompts]
    for index, texts in iterate_continuations(
            model, tokenizer, prompts, k=k, sampling=sampling, seed=seed, keys=keys, guide=guide,
            on_progress=on_progress):
        results[index] = texts
    return results


def iterate_continuations(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], *, k: int,
    sampling: SamplingSection, seed: int, keys: Sequence[str] | None = None, guide: Guide | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> Iterator[tuple[int, list[str]]]:
    """Like `sample_continuations`, yielding (index of the prompt, its continuations) as prompts are finished."""
    keys = keys if keys is not None else [record_id(prompt) for prompt in prompts]
    encoded = _encode(model, tokenizer, prompts, sampling.max_new_tokens)
    if guide is not None:
        guide.check(sampling.max_new_tokens)
    stops = torch.tensor(sorted(end_tokens(model, tokenizer)), dtype=torch.long, device=model.device)
    vocabulary = Vocabulary.of(tokenizer)
    partial: dict[int, list[str]] = {}
    decode = functools.partial(_decode_batch, model, sampling=sampling, seed=seed, stops=stops, guide=guide)
    at_once = _batches_at_once(model)
    shared = sampling.model_copy(update={"batch_tokens": max(1, sampling.batch_tokens // at_once)})
    for batch, continuations in run_in_parallel(decode, _batches(encoded, keys, k, shared), at_once):
        rows = iter(continuations)
        for work in batch:
            texts = [vocabulary.text(next(rows)) for _ in range(work.count)]
            done = partial.setdefault(work.prompt, [])
            done += texts
            if len(done) == k:
                yield work.prompt, partial.pop(work.prompt)
        if on_progress:
            on_progress(len(continuations))


def _batches_at_once(model: PreTrainedModel) -> int:
    """One on an accelerator; on a CPU one for each core.

    A token step of some dozens of rows is little work: cores that share it wait for each other.
    """
    return min(torch.get_num_threads(), _MOST_AT_ONCE) if model.device.type == "cpu" else 1


def _encode(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str],
            new_tokens: int) -> list[list[int]]:
    if not prompts:
        return []
    encoded: list[list[int]] = tokenizer(list(prompts))["input_ids"]  # type: ignore[assignment]
    for number, tokens in enumerate(encoded):
        if not tokens:
            raise DetoxError("a prompt without tokens cannot be continued", place=f"prompt {number + 1}",
                             remedy="leave empty prompts out")
    return cut_prompts(encoded, tokenizer, positions(model.config), new_tokens)


def cut_prompts(prompts: Sequence[list[int]], tokenizer: PreTrainedTokenizerBase, longest: int | None,
                new_tokens: int) -> list[list[int]]:
    """Token ids of prompts, each with room for its continuation; says how many lose their beginning.

    A token that the tokenizer puts in front of every text stays in front.

    Args:
        prompts: token ids of each.
        tokenizer: that made them.
        longest: how many tokens the model reads; None for any number.
        new_tokens: of a continuation.

    Raises:
        DetoxError: a continuation alone is as long as what the model reads.
    """
    if longest is None or all(len(tokens) + new_tokens <= longest for tokens in prompts):
        return list(prompts)
    room = longest - new_tokens
    if room < 2:
        raise DetoxError(f"continuations of {new_tokens} tokens leave no room for a prompt: the model reads {longest}",
                         place="max_new_tokens", remedy="ask for fewer new tokens, or take a model that reads more")
    say(f"{sum(len(tokens) > room for tokens in prompts)} of {len(prompts)} prompts lose their beginning: with "
        f"{new_tokens} new tokens they are longer than the {longest} tokens that the model reads")
    return [tokens if len(tokens) <= room else tokens[-room:] if tokens[0] != tokenizer.bos_token_id
            else tokens[:1] + tokens[1 - room:] for tokens in prompts]


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The ids that end a continuation."""
    config: Any = model.generation_config
    ends = config.eos_token_id if config is not None else None
    return {token for token in [*(ends if isinstance(ends, list) else [ends]), tokenizer.eos_token_id]
            if isinstance(token, int)}


def _batches(encoded: list[list[int]], keys: Sequence[str], k: int, sampling: SamplingSection) -> Iterator[list[_Work]]:
    """Length-sorted batches of at most `batch_tokens` tokens in flight (or one row)."""
    final = [len(tokens) + sampling.max_new_tokens for tokens in encoded]
    for batch in copied_batches(final, keys, k, sampling.batch_tokens):
        yield [_Work(part.item, encoded[part.item], keys[part.item], part.first, part.count) for part in batch]


@torch.inference_mode()
def _decode_batch(model: PreTrainedModel, batch: list[_Work], unwanted: Event, *, sampling: SamplingSection, seed: int,
                  stops: Tensor, guide: Guide | None) -> list[list[int]]:
    """The sampled tokens of every row of the batch, without the stop token; given up where it is `unwanted`."""
    device, rows = model.device, sum(work.count for work in batch)
    repeats = torch.tensor([work.count for work in batch], device=device)
    owner = torch.repeat_interleave(torch.arange(len(batch), device=device), repeats)
    noise = torch.tensor([row_key(seed, work.key, work.first + i) for work in batch for i in range(work.count)],
                         device=device)
    streams = [_Stream(model, [work.tokens for work in batch], owner, sampling.max_new_tokens)]
    if guide:
        streams.append(_Stream(guide.model, [guide.context], torch.zeros_like(owner), sampling.max_new_tokens))
    alive = torch.arange(rows, device=device)
    chosen = torch.full((rows, sampling.max_new_tokens), -1, dtype=torch.long, device=device)
    ended = torch.zeros(rows, dtype=torch.bool, device=device)
    for step in range(sampling.max_new_tokens):
        logits = guide.product(streams[0].logits, streams[1].logits, stops) if guide else streams[0].logits
        tokens = draw(logits, noise, step, top_p=sampling.top_p, temperature=sampling.temperature)
        ended |= torch.isin(tokens, stops)
        chosen[alive, step] = torch.where(ended, -1, tokens)
        remaining = len(alive) - int(ended.sum())
        if step + 1 == sampling.max_new_tokens or remaining == 0 or unwanted.is_set():
            break
        if remaining <= (1 - _DROP_SHARE) * len(alive):
            keep = torch.nonzero(~ended).squeeze(1)
            alive, noise, tokens, ended = (part[keep] for part in (alive, noise, tokens, ended))
            for stream in streams:
                stream.keep(keep)
        for stream in streams:
            stream.step(tokens)
    return [[token for token in row if token >= 0] for row in chosen.tolist()]


class _Stream:
    """One model on its way through continuations: its cache, and what it finds of the next token, [rows, v].

    Args:
        prompts: token ids.
        owner: for each row the number of its prompt.
    """

    def __init__(self, model: PreTrainedModel, prompts: list[list[int]], owner: Tensor, new_tokens: int) -> None:
        self._model = model
        logits, self._cache, lengths, mask = _prefill(model, prompts, new_tokens)
        self._seen = max(map(len, prompts))
        self.logits, self._lengths, self._mask = logits, lengths, mask
        self.keep(owner)

    def keep(self, rows: Tensor) -> None:
        """Take these rows, each as often as it is named."""
        self._cache.batch_select_indices(rows)
        self.logits, self._lengths = self.logits[rows], self._lengths[rows]
        self._mask = self._mask[rows] if self._mask is not None else None

    def step(self, tokens: Tensor) -> None:
        """Read the tokens [rows] that were drawn."""
        self._seen += 1
        out = self._model(**_accepted(self._model, {
            "input_ids": tokens[:, None], "past_key_values": self._cache, "use_cache": True,
            "position_ids": self._lengths[:, None],
            "attention_mask": self._mask[:, :self._seen] if self._mask is not None else None, "logits_to_keep": 1}))
        self._lengths = self._lengths + 1
        self.logits = out.logits[:, -1]


def _prefill(model: PreTrainedModel, prompts: list[list[int]],
             new_tokens: int) -> tuple[Tensor, Cache, Tensor, Tensor | None]:
    """Run the prompts, left-padded.

    Returns:
        next-token logits [b, v], the cache, lengths [b], and the attention mask [b, width + new_tokens],
        or None where all prompts are equally long and nothing is masked.
    """
    device = model.device
    width = max(map(len, prompts))
    lengths = torch.tensor([len(tokens) for tokens in prompts], device=device)
    padded = torch.tensor([[0] * (width - len(tokens)) + tokens for tokens in prompts], device=device)
    columns = torch.arange(width + new_tokens, device=device)
    mask = (columns[None] >= (width - lengths)[:, None]).long()
    positions = (columns[None, :width] - (width - lengths)[:, None]).clamp(min=0)
    equal = all(len(tokens) == width for tokens in prompts)
    cache = roomy_cache(model.config, width + new_tokens)
    out = model(**_accepted(model, {
        "input_ids": padded, "attention_mask": None if equal else mask[:, :width], "position_ids": positions,
        "past_key_values": cache, "use_cache": True, "logits_to_keep": 1}))
    return out.logits[:, -1], cache, lengths, None if equal else mask


def _accepted(model: PreTrainedModel, arguments: dict[str, Any]) -> dict[str, Any]:
    """Those of the arguments that the model's forward takes (some architectures place no position ids)."""
    known = inspect.signature(model.forward).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
        return arguments
    return {name: value for name, value in arguments.items() if name in known}


class RoomyLayer(DynamicLayer):
    """Keys and values [b, heads, seen, d] as views into storage for `room` columns."""

    keys: Tensor
    values: Tensor

    def __init__(self, room: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.room = room
        self._storage: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write the new columns; returns all that are filled."""
        before = self.get_seq_length()
        seen = before + key_states.shape[-2]
        if self._storage is None:
            self.dtype, self.device = key_states.dtype, key_states.device
            self._storage = (_space(key_states, len(key_states), self.room), _space(value_states, len(key_states),
                                                                                    self.room))
            self.is_initialized = True
        for stored, new in zip(self._storage, (key_states, value_states), strict=True):
            stored[:, :, before:seen] = new
        self._show(seen)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Take these rows of the batch, each as often as it is named; only filled columns are copied."""
        if self._storage is None:
            return
        seen = self.get_seq_length()
        moved = []
        for stored in self._storage:
            space = _space(stored, len(indices), self.room)
            torch.index_select(stored[:, :, :seen], 0, indices, out=space[:, :, :seen])
            moved.append(space)
        self._storage = (moved[0], moved[1])
        self._show(seen)

    def _show(self, seen: int) -> None:
        self.keys, self.values = (stored[:, :, :seen] for stored in self._storage or ())


def _space(like: Tensor, rows: int, room: int) -> Tensor:
    return like.new_empty(rows, like.shape[1], room, like.shape[3])


def roomy_cache(config: PretrainedConfig, room: int) -> DynamicCache:
    """The cache that the model's own configuration asks for, its growing layers replaced by those with room.

    Layers of other kinds (sliding windows, state spaces) stay as they are.
    """
    cache = DynamicCache(config=config)
    cache.layers = [RoomyLayer(room) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
