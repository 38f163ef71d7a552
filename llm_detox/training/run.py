"""What SFT and DPO runs share: the trainer's arguments, the run itself and its figures."""

from __future__ import annotations

import errno
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import Trainer

from llm_detox.errors import DetoxError
from llm_detox.generation.models import compute_dtype
from llm_detox.recipe.training import DpoSection, OptimisationSection, SftSection, TrainingSection
from llm_detox.training import distributed
from llm_detox.training.checkpoints import Checkpoints
from llm_detox.training.progress_callback import Watch

# How the writers of safetensors and PyTorch tell that a file could not be written; they pass no error number on.
_WRITE_FAILURES = ("No space left on device", "Disk quota exceeded", "File too large", "PytorchStreamWriter failed",
                   "unexpected pos", "iostream error")


def common_arguments(section: SftSection | DpoSection, *, steps_of: int, seed: int, work: Path) -> dict[str, Any]:
    """Arguments of every Trainer: all logging through `Watch`, all saving through `Checkpoints`, fixed seeds.

    Args:
        section: learning rate, schedule, batch size and epochs.
        steps_of: rows in the data set, from which the number of steps follows.
        seed: for the order of the data, dropout and fresh weights.
        work: a folder the Trainer may use; it holds the checkpoints.

    Raises:
        DetoxError: there is no row, or a batch cannot be dealt out to the processes.
    """
    if not steps_of:
        raise DetoxError("no row of two tokens or more is left to train on", place="training",
                         remedy="give longer texts, or raise max_length of this step")
    return {
        "output_dir": str(work), "seed": seed, "data_seed": seed, "learning_rate": section.learning_rate,
        "per_device_train_batch_size": distributed.share_of_batch(section.batch_size),
        "num_train_epochs": section.epochs,
        "lr_scheduler_type": section.lr_scheduler,
        "max_grad_norm": section.max_grad_norm, "bf16": compute_dtype() is torch.bfloat16,
        "logging_steps": 1, "logging_nan_inf_filter": False, "save_strategy": "no",
        "report_to": [], "disable_tqdm": True, "use_cpu": not torch.cuda.is_available(),
        "dataloader_pin_memory": torch.cuda.is_available(), "log_level": "error", "remove_unused_columns": False,
    } | step_arguments(section, steps_of)


def run_training(trainer: Trainer, description: str, metrics: Path, *, remedy: str, settings: TrainingSection,
                 save: Callable[[], None]) -> dict[str, Any]:
    """Train, watched, from the last checkpoint in the trainer's folder on; returns the figures of `summary`.

    Args:
        trainer: its `output_dir` keeps the last checkpoint, until the step's folder is finished.
        description: what is trained, for the display and in errors.
        metrics: the file that every step is written to.
        remedy: what helps when the loss is no number.
        settings: minutes between two checkpoints, and whether event files are written.
        save: writes the outcome, called in every process; the checkpoints stay until it has.

    Raises:
        DetoxError: the loss or its gradient became NaN or infinite, a batch taught nothing, memory ran out or the
            disk is full.
    """
    checkpoints = Checkpoints(trainer, settings.checkpoint_minutes)
    watch = Watch(description, metrics, remedy=remedy, tensorboard=settings.tensorboard)
    watch.attach(trainer)
    trainer.add_callback(checkpoints)
    try:
        with _clear_failures(description, checkpoints):
            trainer.train(resume_from_checkpoint=checkpoints.resume())
            save()
    finally:
        watch.close()
    return distributed.from_first(lambda: summary(metrics))


@contextmanager
def _clear_failures(description: str, checkpoints: Checkpoints) -> Iterator[None]:
    """A machine that is too small, in words that help."""
    try:
        yield
    except (MemoryError, RuntimeError, SafetensorError, OSError) as error:
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            where = "the accelerator's memory" if isinstance(error, torch.OutOfMemoryError) else "the memory"
            raise DetoxError(f"{where} is full", place=description, remedy="lower the batch_size or max_length of this "
                             "step, set its gradient_checkpointing: true, or train LoRA on a base in 4 bits (method: "
                             "lora, training.quantization: nf4)") from error
        if not _is_full_disk(error):
            raise
        checkpoints.drop_unfinished()
        last = checkpoints.last()
        kept = f"; it goes on behind {last.name.replace('-', ' ')}" if last else ""
        raise DetoxError("the disk is full, a file could not be written", place=str(checkpoints.folder),
                         remedy=f"free some space and give the same command again{kept}") from error


def _is_full_disk(error: Exception) -> bool:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return True
    return any(words in str(error) for words in _WRITE_FAILURES)


def summary(metrics: Path) -> dict[str, Any]:
    """The figures of a finished run, from its metrics file."""
    rows = [json.loads(line) for line in metrics.read_text("utf-8").splitlines()]
    tenth = max(1, len(rows) // 10)
    first, last = (sum(row["loss"] for row in part) / tenth for part in (rows[:tenth], rows[-tenth:]))
    end = rows[-1]
    return {"steps": end["step"], "loss_first": round(first, 4), "loss_last": round(last, 4),
            "tokens": int(end.get("tokens", 0)), "seconds": end["seconds"],
            "tokens_per_second": end["tokens_per_second"]}


def step_arguments(stage: OptimisationSection, rows: int) -> dict[str, Any]:
    """The trainer's arguments for a stage over so many rows.

    The paged 8-bit optimiser pages on GPUs alone; on a CPU bitsandbytes keeps its state in memory.
    """
    steps = stage.max_steps or math.ceil(math.ceil(rows / stage.batch_size) / stage.accumulation) * stage.epochs
    warmup = math.floor(stage.warmup_ratio * steps) if stage.warmup_steps is None else stage.warmup_steps
    arguments = {"gradient_accumulation_steps": stage.accumulation, "max_steps": stage.max_steps or -1,
                 "warmup_steps": warmup, "gradient_checkpointing": stage.gradient_checkpointing}
    return arguments | ({} if stage.optimizer == "adamw" else {"optim": stage.optimizer})
