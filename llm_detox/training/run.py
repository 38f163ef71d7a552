"""The one training loop: the trainer's arguments, the run itself with its checkpoints, and its figures.

A checkpoint is whole or not there, so that a killed run continues as if nothing had happened. The trainer writes
adapter, optimiser, schedule, random states and its place in the data into `checkpoint-N`. Only when all of it lies on
the disk does the folder become `step-N`, and only then is the one before removed. Weights are safetensors; optimiser,
schedule and random states are read by `torch.load(weights_only=True)`: no code is run.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llm_detox.errors import DetoxError
from llm_detox.generation.models import compute_dtype
from llm_detox.progress import say
from llm_detox.recipe.training import OptimisationSection, TrainingSection
from llm_detox.runs.artifacts import OPTIONAL
from llm_detox.training import distributed
from llm_detox.training.progress_callback import Watch

Arguments = TypeVar("Arguments", bound=TrainingArguments)
# How the writers of safetensors and PyTorch tell that a file could not be written; they pass no error number on.
_WRITE_FAILURES = ("No space left on device", "Disk quota exceeded", "File too large", "PytorchStreamWriter failed",
                   "unexpected pos", "iostream error")
# What a trainer counts beside its state: TRL's tokens, and where DPO's anchor continues.
_COUNTERS = ("_total_train_tokens", "_next_anchor")
_COUNTERS_FILE = "counters.json"


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """The figures of a run: losses in nats a token, means over the first and last tenth of the steps.

    `quantization` is what `training.quantization: auto` decided; None where the recipe decided itself.
    """

    quantization: str | None = field(default=None, metadata=OPTIONAL)
    steps: int
    loss_first: float
    loss_last: float
    tokens: int
    seconds: float
    tokens_per_second: float


def training_arguments(kind: type[Arguments], stage: OptimisationSection, *, rows: int, seed: int, work: Path,
                       dtype: torch.dtype | None = None, **own: Any) -> Arguments:
    """Arguments of every Trainer: all logging through `Watch`, all saving through `Checkpoints`, fixed seeds.

    Args:
        kind: the class of the trainer's arguments.
        stage: learning rate, schedule, batch size and epochs.
        rows: in the data set, from which the number of steps follows.
        seed: for the order of the data, dropout and fresh weights.
        work: a folder the Trainer may use; it holds the checkpoints.
        dtype: of products; the default is `compute_dtype()`.
        own: arguments of this kind of trainer alone.

    Raises:
        DetoxError: there is no row, or a batch cannot be dealt out to the processes.
    """
    if not rows:
        raise DetoxError("no row of two tokens or more is left to train on", place="training",
                         remedy="give longer texts, or raise max_length of this step")
    if stage.optimizer != "adamw":  # the paged one pages on GPUs alone; on a CPU its state stays in memory
        own["optim"] = stage.optimizer
    return kind(
        output_dir=str(work), seed=seed, data_seed=seed, learning_rate=stage.learning_rate,
        per_device_train_batch_size=distributed.share_of_batch(stage.batch_size),
        gradient_accumulation_steps=stage.accumulation,
        num_train_epochs=stage.epochs, max_steps=stage.max_steps or -1, warmup_steps=warmup_steps(stage, rows),
        lr_scheduler_type=stage.lr_scheduler, max_grad_norm=stage.max_grad_norm,
        bf16=(dtype or compute_dtype()) is torch.bfloat16,
        gradient_checkpointing=stage.gradient_checkpointing,
        logging_steps=1, logging_nan_inf_filter=False, save_strategy="no",
        report_to=[], disable_tqdm=True, use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(), log_level="error", remove_unused_columns=False,
        **own)


def warmup_steps(stage: OptimisationSection, rows: int) -> int:
    """How many steps the learning rate rises, in a training on so many rows."""
    if stage.warmup_steps is not None:
        return stage.warmup_steps
    steps = stage.max_steps or math.ceil(math.ceil(rows / stage.batch_size) / stage.accumulation) * stage.epochs
    return math.floor(stage.warmup_ratio * steps)


def run_training(trainer: Trainer, description: str, metrics: Path, *, remedy: str, settings: TrainingSection,
                 save: Callable[[], None]) -> TrainingResult:
    """Train, watched, from the last checkpoint in the trainer's folder on.

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


def summary(metrics: Path) -> TrainingResult:
    """The figures of a finished run, from its metrics file."""
    rows = [json.loads(line) for line in metrics.read_text("utf-8").splitlines()]
    tenth = max(1, len(rows) // 10)
    first, last = (sum(row["loss"] for row in part) / tenth for part in (rows[:tenth], rows[-tenth:]))
    end = rows[-1]
    return TrainingResult(
        steps=end["step"], loss_first=round(first, 4), loss_last=round(last, 4), tokens=int(end.get("tokens", 0)),
        seconds=end["seconds"], tokens_per_second=end["tokens_per_second"])


@contextmanager
def _clear_failures(description: str, checkpoints: Checkpoints) -> Iterator[None]:
    """A machine that is too small, in words that help."""
    try:
        yield
    except (MemoryError, RuntimeError, SafetensorError, OSError) as error:
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            memory = "the accelerator's memory" if isinstance(error, torch.OutOfMemoryError) else "the memory"
            raise DetoxError(f"{memory} is full", place=description, remedy="lower the batch_size or max_length of "
                             "this step, set its gradient_checkpointing: true, or train LoRA on a base in 4 bits "
                             "(method: lora, training.quantization: nf4)") from error
        if not _is_full_disk(error):
            raise
        checkpoints.drop_unfinished()
        last = checkpoints.last()
        kept = f"; it continues after {last.name.replace('-', ' ')}" if last else ""
        raise DetoxError("the disk is full, a file could not be written", place=str(checkpoints.folder),
                         remedy=f"free some space and give the same command again{kept}") from error


def _is_full_disk(error: Exception) -> bool:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return True
    return any(words in str(error) for words in _WRITE_FAILURES)


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
