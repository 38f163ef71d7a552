"""Checkpoints of a training run: whole or not there, so that a killed run continues as if nothing had happened.

The trainer writes adapter, optimiser, schedule, random states and its place in the data into `checkpoint-N`. Only
when all of it lies on the disk does the folder become `step-N`, and only then is the one before removed. Weights are
safetensors; optimiser, schedule and random states are read by `torch.load(weights_only=True)`: no code is run.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llm_detox.progress import say
from llm_detox.training import distributed

# What a trainer counts beside its state: TRL's tokens, and where DPO's anchor continues.
_COUNTERS = ("_total_train_tokens", "_next_anchor")
_COUNTERS_FILE = "counters.json"


class Checkpoints(TrainerCallback):
    """Saves a checkpoint of the trainer every so often and finds the last one.

    Args:
        trainer: its `output_dir` holds the checkpoints.
        minutes: between two checkpoints: what a kill costs at most; 0 saves after every step.
    """

    def __init__(self, trainer: Trainer, minutes: float) -> None:
        self._trainer, self._seconds = trainer, 60 * minutes
        self.folder = Path(str(trainer.args.output_dir))
        self._last_save = time.monotonic()
        if distributed.is_first():
            self.drop_unfinished()

    def last(self) -> Path | None:
        """The last whole checkpoint."""
        return max(self.folder.glob("step-*"), key=_step_of, default=None)

    def resume(self) -> str | None:
        """Where the trainer continues, with its counters set; None where nothing was saved yet."""
        if (last := self.last()) is None:
            return None
        for name, value in json.loads((last / _COUNTERS_FILE).read_text("utf-8")).items():
            setattr(self._trainer, name, value)
        say(f"training continues after step {_step_of(last)}")
        return str(last)

    def drop_unfinished(self) -> None:
        """Remove what a kill or a full disk left."""
        for unfinished in self.folder.glob("checkpoint-*"):
            shutil.rmtree(unfinished, ignore_errors=True)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        due = state.global_step < state.max_steps and time.monotonic() - self._last_save >= self._seconds
        control.should_save = distributed.from_first(lambda: due)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        distributed.wait_for_all()  # each process writes its random state
        if distributed.is_first():
            written, before = self.folder / f"checkpoint-{state.global_step}", self.last()
            counters = {name: getattr(self._trainer, name) for name in _COUNTERS if hasattr(self._trainer, name)}
            (written / _COUNTERS_FILE).write_text(json.dumps(counters), "utf-8")
            _sync(written)
            written.rename(self.folder / f"step-{state.global_step}")
            if before is not None:
                shutil.rmtree(before)
        distributed.wait_for_all()
        self._last_save = time.monotonic()


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _sync(folder: Path) -> None:
    """Wait until the disk has all files: a rename must not survive a power cut that the content does not."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
