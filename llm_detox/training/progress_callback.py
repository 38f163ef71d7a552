"""What a training run shows while it goes, in place of the libraries' own bars and notices; and the stop when its loss
is no number."""

from __future__ import annotations

import json
import logging
import math
import os
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback
from transformers.utils import logging as transformers_logging

from llm_detox.errors import DetoxError
from llm_detox.processes import peak_memory_bytes
from llm_detox.progress import Task, task
from llm_detox.training import distributed

_RENAMED = {"num_tokens": "tokens", "rewards/accuracies": "reward_accuracy", "rewards/margins": "reward_margin",
            "rewards/chosen": "reward_chosen", "rewards/rejected": "reward_rejected"}
_KEPT = {"loss", "learning_rate", "grad_norm", "anchor_loss", *_RENAMED}
EVENTS = "tensorboard"


class Watch(TrainerCallback):
    """Shows steps, loss and tokens a second, writes each logged step to `metrics.jsonl`, stops on a bad loss.

    With `tensorboard`, the steps go to event files beside it, too.

    A run that continues from a checkpoint continues its metrics, too: the lines of steps that were lost are dropped,
    and the seconds count on.
    """

    def __init__(self, description: str, metrics: Path, *, remedy: str, tensorboard: bool = False) -> None:
        self.description, self.metrics, self.remedy = description, metrics, remedy
        self.tensorboard = tensorboard
        self._events: EventFiles | None = None
        self.last: dict[str, float] = {}
        self.tokens_per_second = 0.0
        self._display: Any = None
        self._task: Task | None = None
        self._started = 0.0
        self._seconds_before = 0.0

    def attach(self, trainer: Trainer) -> None:
        """Join the trainer, in place of its own printing to stdout."""
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(self)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._started = time.monotonic()
        if not distributed.is_first():
            return
        self._keep_metrics_until(state.global_step)
        if self.tensorboard:
            self._events = EventFiles(self.metrics.parent / EVENTS, done=state.global_step)
        self._display = task(self.description, state.max_steps, "steps")
        self._task = self._display.__enter__()
        if state.global_step:
            self._task.skip(state.global_step)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl,
               logs: dict[str, float] | None = None, **_: Any) -> None:
        if not logs or "loss" not in logs:
            return
        row = {_RENAMED.get(key, key): value for key, value in logs.items() if key in _KEPT}
        self._measure(row)
        if distributed.is_first():
            with self.metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": state.global_step, **row}) + "\n")
            if self._events is not None:
                self._events.add(state.global_step, row)
        for figure, name in (("loss", "loss"), ("gradient", "grad_norm")):
            if not math.isfinite(row.get(name, 0.0)):  # before a checkpoint is made of it
                raise DetoxError(f"the {figure} is {row[name]} at step {state.global_step}", place=self.description,
                                 remedy=self.remedy)
        self.last = row

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._task is not None:
            note = f"loss {self.last['loss']:.3f}, {self.tokens_per_second:.0f} tokens/s" if self.last else ""
            self._task.advance(1, note)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.close()

    def close(self) -> None:
        """End the display and the event files; also after a failure."""
        if self._events is not None:
            self._events.close()
        if self._display is not None:
            self._display.__exit__(None, None, None)
            self._display = None

    def _keep_metrics_until(self, step: int) -> None:
        lines = self.metrics.read_text("utf-8").splitlines() if step else []
        kept = [line for line in lines[:step] if json.loads(line)["step"] <= step]
        written = self.metrics.with_suffix(".part")
        written.write_text("".join(line + "\n" for line in kept), "utf-8")
        written.replace(self.metrics)
        self._seconds_before = float(json.loads(kept[-1])["seconds"]) if kept else 0.0

    def _measure(self, row: dict[str, float]) -> None:
        tokens = row.get("tokens", 0.0)
        seconds = self._seconds_before + time.monotonic() - self._started
        self.tokens_per_second = tokens / seconds if seconds > 0 else 0.0
        row["seconds"] = round(seconds, 2)
        row["tokens_per_second"] = round(self.tokens_per_second, 1)
        row["memory_bytes"] = peak_memory_bytes()


class EventFiles:
    """Every figure of every step as a scalar.

    Args:
        folder: where the files go: `tensorboard --logdir` shows it, also while the training runs.
        done: steps up to the checkpoint from which the run continues; what later steps wrote does not count.

    Raises:
        DetoxError: the package is not installed.
    """

    def __init__(self, folder: Path, *, done: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise DetoxError("the package tensorboard is not installed", place="training.tensorboard",
                             remedy="pip install tensorboard, or set training.tensorboard: false") from error
        self._writer: Any = SummaryWriter(str(folder), purge_step=done + 1 if done else None)  # type: ignore[no-untyped-call]

    def add(self, step: int, row: Mapping[str, float]) -> None:
        """Write a step's figures."""
        for name, value in row.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()


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
