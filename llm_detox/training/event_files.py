"""The figures of a training as TensorBoard's event files, beside `metrics.jsonl`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm_detox.errors import DetoxError

EVENTS = "tensorboard"


class EventFiles:
    """Every figure of every step as a scalar.

    Args:
        folder: where the files go: `tensorboard --logdir` shows it, also while the training runs.
        done: steps that are behind the checkpoint from which the run goes on; what later steps wrote does not count.

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
