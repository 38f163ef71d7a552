"""The model behind the scheduler: forward passes of a Hugging Face causal language model over a changing batch."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from llm_detox.errors import DetoxError
from llm_detox.generation.models import compute_dtype, device, learns_positions, load_model, positions
from serving.engine.cache import BatchCache
from serving.engine.packing import pack
from serving.engine.settings import Settings
from serving.engine.source import Source

log = logging.getLogger(__name__)

_DEFAULT_LENGTH = 2048
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


Watch = Callable[[Tensor], None]
_WATCHED_TOKENS = 256


class PromptFailed(RuntimeError):
    """New prompts could not be run; the rows that were there are as before."""


class Rows(Protocol):
    """A batch of sequences that a model extends; row i is the i-th sequence that was added and not dropped."""

    limit: int

    def add(self, prompts: Sequence[Sequence[int]], *, watch: Watch | None = None) -> Tensor:
        """Run the prompts and append them as rows: logits [n, v] of the next token.

        Args:
            prompts: ids of each; a single one where it is watched.
            watch: called with the logits [t, v] of the prompt's positions, some at a time.

        Raises:
            PromptFailed: the forward pass failed, for want of memory for example.
        """

    def step(self, tokens: Sequence[int]) -> Tensor:
        """Append a token to every row: logits [rows, v] of the next one."""

    def drop(self, row: int) -> None:
        """Remove a row; the last row takes its place."""

    def clear(self) -> None:
        """Remove all rows."""


class BatchedRows:
    """Rows that run together in one padded batch."""

    def __init__(self, model: PreTrainedModel, limit: int) -> None:
        self.limit = limit
        self._model = model
        self._cache = BatchCache()

    @torch.inference_mode()
    def add(self, prompts: Sequence[Sequence[int]], *, watch: Watch | None = None) -> Tensor:
        cache = DynamicCache()
        try:
            logits = self._padded(cache, prompts) if watch is None else self._watched(cache, prompts[0], watch)
        except Exception as error:  # too little memory, or whatever a model's own code raises
            raise PromptFailed(f"{type(error).__name__}: {error}") from error
        self._cache.add(cache, [len(prompt) for prompt in prompts])
        return logits

    def _padded(self, cache: DynamicCache, prompts: Sequence[Sequence[int]]) -> Tensor:
        longest, where = max(map(len, prompts)), self._model.device
        ids = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        columns = torch.arange(longest) - (longest - lengths)[:, None]
        return _forward(self._model, ids.to(where), past_key_values=cache, logits_to_keep=1,
                        attention_mask=(columns >= 0).long().to(where),
                        position_ids=columns.clamp(min=0).to(where))[:, -1]

    def _watched(self, cache: DynamicCache, prompt: Sequence[int], watch: Watch) -> Tensor:
        # The logits of a long prompt at once would take gigabytes.
        for start in range(0, len(prompt), _WATCHED_TOKENS):
            part = torch.tensor([prompt[start : start + _WATCHED_TOKENS]], device=self._model.device)
            positions = torch.arange(start, start + part.shape[1], device=part.device)[None]
            logits = _forward(self._model, part, past_key_values=cache, position_ids=positions,
                              attention_mask=positions.new_ones(1, start + part.shape[1]))
            watch(logits[0])
        return logits[:, -1]

    @torch.inference_mode()
    def step(self, tokens: Sequence[int]) -> Tensor:
        where = self._model.device
        cache, mask, positions = self._cache.step(where)
        ids = torch.tensor(tokens, device=where)[:, None]
        logits = _forward(self._model, ids, past_key_values=cache, attention_mask=mask, position_ids=positions)
        self._cache.stepped()
        return logits[:, -1]

    @torch.inference_mode()
    def drop(self, row: int) -> None:
        self._cache.remove(row)

    def clear(self) -> None:
        self._cache = BatchCache()


class SoloRows:
    """One row at a time, in the cache that the model makes for itself; for models that no padded batch suits."""

    limit = 1

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        # State-space models name their state otherwise.
        known = inspect.signature(model.forward).parameters
        self._name = next((n for n in ("past_key_values", "cache_params", "state") if n in known), "past_key_values")
        self._cache: Any = None

    @torch.inference_mode()
    def add(self, prompts: Sequence[Sequence[int]], *, watch: Watch | None = None) -> Tensor:
        try:
            logits = self._run(torch.tensor([list(prompts[0])], device=self._model.device))
        except Exception as error:
            raise PromptFailed(f"{type(error).__name__}: {error}") from error
        if watch is not None:
            watch(logits[0])
        return logits[:, -1]

    @torch.inference_mode()
    def step(self, tokens: Sequence[int]) -> Tensor:
        return self._run(torch.tensor([list(tokens)], device=self._model.device))[:, -1]

    def drop(self, row: int) -> None:
        self._cache = None

    def clear(self) -> None:
        self._cache = None

    def _run(self, ids: Tensor) -> Tensor:
        output = self._model(input_ids=ids, use_cache=True, **{self._name: self._cache})
        self._cache = output[self._name]
        logits: Tensor = output.logits
        return logits


def _forward(model: Any, ids: Tensor, **inputs: Any) -> Tensor:
    logits: Tensor = model(input_ids=ids, use_cache=True, **inputs).logits
    return logits


class Model:
    """A loaded model with its batch and lengths.

    Args:
        source: where it lies.
        settings: of the engine.

    Raises:
        DetoxError: the model is missing, or is of a kind that this engine does not serve.
    """

    def __init__(self, source: Source, settings: Settings) -> None:
        folder = source.folder
        self.model = load_model(folder, dtype=_dtype(settings.dtype))
        config: Any = self.model.config
        if config.is_encoder_decoder:
            raise DetoxError("encoder-decoder models are not served by this engine", place=str(folder),
                             remedy="give a causal (decoder-only) language model")
        try:
            pack(self.model)
        except AttributeError as error:
            log.info("%s is not packed: %s", type(self.model).__name__, error)
            self.model = load_model(folder, dtype=_dtype(settings.dtype))
        embeddings: Any = self.model.get_input_embeddings()
        self.vocabulary_size = int(embeddings.weight.shape[0])
        self.max_sequence_length = self._length(settings)
        self.rows = self._rows(settings.max_batch_size)

    def _length(self, settings: Settings) -> int:
        own = positions(self.model.config)
        asked = settings.max_sequence_length
        if asked and own and asked > own:
            log.warning("max_sequence_length %d is more than the model was made for (%d)", asked, own)
            if learns_positions(self.model):  # beyond the last of them it fails
                return own
        return asked or own or _DEFAULT_LENGTH

    def _rows(self, limit: int) -> Rows:
        if limit == 1:
            return SoloRows(self.model)
        reason = (_stretching(self.model.config.get_text_config(), self.max_sequence_length)
                  or batching_trouble(self.model, self.vocabulary_size))
        if reason is None:
            return BatchedRows(self.model, limit)
        log.warning("requests run one after the other, not in a batch: %s", reason)
        return SoloRows(self.model)


@torch.inference_mode()
def batching_trouble(model: PreTrainedModel, vocabulary_size: int) -> str | None:
    """Why this model cannot run in a padded, changing batch; None where it can.

    It is tried, not guessed from the architecture: two prompts that join, step and leave at different times must see
    the logits that each sees alone.
    """
    generator = torch.Generator().manual_seed(1)
    long, short, more = (torch.randint(vocabulary_size, (n,), generator=generator).tolist() for n in (9, 4, 3))
    rows = BatchedRows(model, 2)
    try:
        seen = [rows.add([long])[0], rows.step(more[:1])[0]]
        seen += [rows.add([short])[0]]
        both = rows.step(more[1:])
        alone = [_alone(model, ids) for ids in (long, long + more[:1], short, long + more[:2], short + more[2:])]
    except Exception as error:  # whatever a model's own code raises means the same: not this way
        log.debug("batching probe", exc_info=True)
        return f"{type(model).__name__} does not run with a batch cache ({type(error).__name__}: {error})"
    finally:
        rows.clear()
    tolerance = 1e-3 if model.dtype == torch.float32 else 0.1
    spread = max(float(logits.float().std()) for logits in alone)
    worst = max(float((a.float() - b.float()).abs().max())
                for a, b in zip([*seen, *both], alone, strict=True)) / max(spread, 1e-6)
    if worst > tolerance:
        return f"{type(model).__name__} gives other results in a padded batch (off by {worst:.2g} standard deviations)"
    return None


def _stretching(config: Any, longest: int) -> str | None:
    """Some rope scalings look at the longest sequence of the batch, so that one request would change the others."""
    rope = getattr(config, "rope_parameters", None) or {}
    for scaling in (rope, *(value for value in rope.values() if isinstance(value, dict))):
        kind = scaling.get("rope_type")
        original = scaling.get("original_max_position_embeddings") or getattr(
            config, "original_max_position_embeddings", None) or config.max_position_embeddings
        if kind in ("dynamic", "longrope") and longest > original:
            return (f"its {kind} rope scaling depends on the longest sequence of a batch; "
                    f"--max-sequence-length {original} makes batches possible")
    return None


def _alone(model: PreTrainedModel, ids: list[int]) -> Tensor:
    logits: Tensor = model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits
    return logits[0, -1]


def _dtype(asked: str | None) -> torch.dtype:
    best = compute_dtype()
    if asked is None:
        return best
    if asked not in _DTYPES:
        raise DetoxError(f"{asked!r} is not a dtype", place="dtype", remedy=", ".join(_DTYPES))
    if device().type == "cpu" and asked != "float32":
        log.warning("computing in float32: %s is far slower on this CPU", asked)
        return torch.float32
    return _DTYPES[asked]
