"""Trainer arguments that follow from a stage's settings: steps, warm-up, accumulation, optimiser."""

from __future__ import annotations

import math
from typing import Any

from llm_detox.recipe_training import OptimisationSection


def step_arguments(stage: OptimisationSection, rows: int) -> dict[str, Any]:
    """The trainer's arguments for a stage over so many rows.

    The paged 8-bit optimiser pages on GPUs alone; on a CPU bitsandbytes keeps its state in memory.
    """
    steps = stage.max_steps or math.ceil(math.ceil(rows / stage.batch_size) / stage.accumulation) * stage.epochs
    warmup = math.floor(stage.warmup_ratio * steps) if stage.warmup_steps is None else stage.warmup_steps
    arguments = {"gradient_accumulation_steps": stage.accumulation, "max_steps": stage.max_steps or -1,
                 "warmup_steps": warmup, "gradient_checkpointing": stage.gradient_checkpointing}
    return arguments | ({} if stage.optimizer == "adamw" else {"optim": stage.optimizer})
