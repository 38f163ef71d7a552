"""What SFT and DPO runs share: the trainer's arguments, the run itself and its figures."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer

from llm_detox.errors import DetoxError
from llm_detox.generation.models import compute_dtype
from llm_detox.recipe import DpoSection, SftSection
from llm_detox.training.watch import Watch


def common_arguments(section: SftSection | DpoSection, *, steps_of: int, seed: int, work: Path) -> dict[str, Any]:
    """Arguments of every Trainer: all logging through `Watch`, no files of its own, fixed seeds.

    Args:
        section: learning rate, schedule, batch size and epochs.
        steps_of: rows in the data set, from which the warm-up steps follow.
        seed: for the order of the data, dropout and fresh weights.
        work: a folder the Trainer may use; it is removed after the run.
    """
    steps = math.ceil(steps_of / section.batch_size) * section.epochs
    return {
        "output_dir": str(work), "seed": seed, "data_seed": seed, "learning_rate": section.learning_rate,
        "per_device_train_batch_size": section.batch_size, "num_train_epochs": section.epochs,
        "lr_scheduler_type": section.lr_scheduler, "warmup_steps": math.floor(section.warmup_ratio * steps),
        "max_grad_norm": section.max_grad_norm, "bf16": compute_dtype() is torch.bfloat16,
        "gradient_checkpointing": False, "logging_steps": 1, "logging_nan_inf_filter": False, "save_strategy": "no",
        "report_to": [], "disable_tqdm": True, "use_cpu": not torch.cuda.is_available(),
        "dataloader_pin_memory": torch.cuda.is_available(), "log_level": "error", "remove_unused_columns": False,
    }


def run_training(trainer: Trainer, description: str, metrics: Path, *, remedy: str) -> dict[str, Any]:
    """Train, watched; returns steps, losses, tokens, seconds and the rate.

    Raises:
        DetoxError: the loss became NaN or infinite, or memory ran out.
    """
    watch = Watch(description, metrics, remedy=remedy)
    watch.attach(trainer)
    try:
        trainer.train()
    except torch.OutOfMemoryError as error:
        raise DetoxError("the accelerator's memory is full", place=description,
                         remedy="lower the batch_size or max_length of this step, or set quantization: nf4") from error
    finally:
        watch.close()
        shutil.rmtree(str(trainer.args.output_dir), ignore_errors=True)
    return summary(metrics)


def summary(metrics: Path) -> dict[str, Any]:
    """The figures of a finished run, from its metrics file."""
    rows = [json.loads(line) for line in metrics.read_text("utf-8").splitlines()]
    tenth = max(1, len(rows) // 10)
    first, last = (sum(row["loss"] for row in part) / tenth for part in (rows[:tenth], rows[-tenth:]))
    end = rows[-1]
    return {"steps": end["step"], "loss_first": round(first, 4), "loss_last": round(last, 4),
            "tokens": int(end.get("tokens", 0)), "seconds": end["seconds"],
            "tokens_per_second": end["tokens_per_second"]}
