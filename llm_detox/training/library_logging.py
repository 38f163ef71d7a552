"""Keep libraries' own progress bars and notices out of the terminal: `llm_detox.progress` tells what happens."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import datasets
from transformers.utils import logging as transformers_logging


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Within the block, transformers, datasets, TRL and bitsandbytes show errors only; before and after as usual."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    had_tqdm = os.environ.get("TQDM_DISABLE")
    os.environ["TQDM_DISABLE"] = "1"
    had_bars, level = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    loggers = {name: logging.getLogger(name) for name in ("bitsandbytes.backends.cpu.ops", "trl", "peft")}
    levels = {name: logger.level for name, logger in loggers.items()}
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    datasets.disable_progress_bars()
    for logger in loggers.values():
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning)
            warnings.filterwarnings("ignore", category=UserWarning, module="(trl|transformers|peft|torch|bitsandbytes)")
            yield
    finally:
        if had_tqdm is None:
            del os.environ["TQDM_DISABLE"]
        if had_bars:
            transformers_logging.enable_progress_bar()
        transformers_logging.set_verbosity(level)
        datasets.enable_progress_bars()
        for name, logger in loggers.items():
            logger.setLevel(levels[name])
