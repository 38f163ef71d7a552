"""From a model folder to what serves calls: tokenizer, back end, limits."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llm_detox.errors import DetoxError
from llm_detox.plugins import PREFIX, load_plugin
from serving.engine.jobs import Engine
from serving.engine.metrics import Metrics
from serving.engine.service import Served
from serving.engine.settings import Settings
from serving.engine.tokenization import Tokenization
from serving.engine.validation import Limits

log = logging.getLogger(__name__)

_NO_TOKENS = "no memory is left for the cache"

# From (source, settings, metrics) to the engine and the longest sequence that it holds, in tokens.
Make = Callable[[Any, Settings, Metrics], tuple[Engine, int]]


def load(settings: Settings, metrics: Metrics) -> Served:
    """Load the model that the settings name and start its engine.

    Raises:
        DetoxError: the model is missing, of a kind that is not served, or does not fit into memory.
    """
    # torch and transformers take seconds to import; wrong settings and taken ports show before that.
    from serving.engine.source import Source

    name = Path(settings.model_name)
    if name.exists():  # a link may move on to another version while files are read
        settings = dataclasses.replace(settings, model_name=str(name.resolve()))
    source = Source(settings.model_name, keep_special=settings.output_special_tokens)
    engine, longest = _maker(settings)(source, settings, metrics)
    limits = Limits(longest, min(settings.max_new_tokens, longest - 1), settings.default_include_stop_seqs)
    engine.start()
    return Served(str(source.folder), Tokenization.of(source.vocabulary, source.bos), engine, limits)


def _maker(settings: Settings) -> Make:
    if settings.backend.startswith(PREFIX):
        plugin: Make = load_plugin("llm_detox.backends", settings.backend)
        return plugin
    return _vllm if _wants_vllm(settings) else _transformers


def _vllm(source: Any, settings: Settings, metrics: Metrics) -> tuple[Engine, int]:
    from serving.engine.backend_vllm import VllmEngine

    engine = VllmEngine(source.folder, settings, source.vocabulary, source.eos, metrics)
    log.info("vLLM; batches of %d, sequences of %d tokens", settings.max_batch_size, engine.max_sequence_length)
    return engine, engine.max_sequence_length


def _transformers(source: Any, settings: Settings, metrics: Metrics) -> tuple[Engine, int]:
    import torch

    from serving.engine.backend_transformers import Model
    from serving.engine.resources import cache_tokens, usable_cores
    from serving.engine.scheduler import Scheduler

    cores = usable_cores() or torch.get_num_threads()
    torch.set_num_threads(settings.threads or min(cores, torch.get_num_threads()))
    model = Model(source, settings)
    budget = cache_tokens(model.model, settings.memory_fraction)
    longest = min(model.max_sequence_length, budget)
    if longest < 2:
        raise DetoxError(_NO_TOKENS, place=settings.model_name, remedy="a smaller model, or more memory")
    if longest < model.max_sequence_length:
        log.warning("max_sequence_length is lowered from %d to %d, what the memory holds", model.max_sequence_length,
                    longest)
    log.info("%s on %s in %s; batches of %d, sequences of %d tokens", type(model.model).__name__, model.model.device,
             model.model.dtype, model.rows.limit, longest)
    return Scheduler(model.rows, source.vocabulary, source.eos, metrics, budget=budget,
                     prefill_tokens=settings.max_prefill_tokens, prefill_padding=settings.max_prefill_padding), longest


def _wants_vllm(settings: Settings) -> bool:
    from serving.engine.backend_vllm import installed

    if settings.backend == "vllm" and not installed():
        raise DetoxError("vLLM is not installed", place="--backend", remedy="install it, or --backend transformers")
    return settings.backend == "vllm" or (settings.backend == "auto" and installed())
