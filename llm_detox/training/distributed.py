"""Training in several processes, as `torchrun` starts them: who is who, what all agree on, and the one output.

    torchrun --nproc-per-node 8 --no-python llm-detox sft --recipe FILE --input FILE --output DIR

The recipe's batch is dealt out, so the losses are those of one process, but for an incomplete last batch: each process
has as many rows, so it is filled up with rows of the first one. Without quantisation the base is sharded
(FSDP2), and each process holds the small adapter whole; a quantised base is small too, and held by each.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from peft import PeftModel
from transformers.distributed.configuration_utils import DistributedConfig

from llm_detox.errors import DetoxError
from llm_detox.recipe.training import TrainJobSection
from llm_detox.runs.folders import StepFolder, staging_of, step_folder

T = TypeVar("T")
_PATIENCE = timedelta(hours=6)  # the first process samples and scores the pairs of DPO alone


def count() -> int:
    """How many processes train together; 1 outside `torchrun`."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """This process's number among them."""
    return int(os.environ.get("RANK", "0"))


def on_other_nodes(job: TrainJobSection) -> bool:
    """Whether the training runs as a job of several nodes, and this process is not one of theirs."""
    return job.nodes > 1 and count() == 1


def is_first() -> bool:
    """Whether this process is the one that writes files and shows progress."""
    return rank() == 0


def share_of_batch(batch_size: int) -> int:
    """How many rows of a batch this process takes.

    Raises:
        DetoxError: the batch cannot be dealt out evenly.
    """
    share, left = divmod(batch_size, count())
    if left or not share:
        raise DetoxError(f"a batch of {batch_size} cannot be dealt out to {count()} processes",
                         place="training, batch_size", remedy=f"make batch_size a multiple of {count()}")
    return share


def wait_for_all() -> None:
    """Return when every process has come here."""
    if _together():
        torch.distributed.barrier()


def from_first(make: Callable[[], T]) -> T:
    """What the first process makes, in all of them; the others wait for it."""
    if not _together():
        return make()
    made: list[Any] = [make() if is_first() else None]
    torch.distributed.broadcast_object_list(made, src=0)
    return made[0]  # type: ignore[no-any-return]


@contextmanager
def shared_step_folder(output: Path, kind: str, **options: Any) -> Iterator[StepFolder]:
    """`step_folder` for all processes together: the first one's finished folder; the others end here, quietly."""
    if count() == 1:
        with step_folder(output, kind, **options) as folder:
            yield folder
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    torch.distributed.init_process_group(backend, timeout=_PATIENCE)
    try:
        if is_first():
            with step_folder(output, kind, **options) as folder:
                wait_for_all()  # nobody works before the folder is there
                yield folder
                wait_for_all()
        else:
            wait_for_all()
            yield StepFolder(staging_of(output))
            wait_for_all()
    finally:
        torch.distributed.destroy_process_group()
    if not is_first():
        raise SystemExit(0)


def _together() -> bool:
    return count() > 1 and torch.distributed.is_initialized()


def sharding_config() -> DistributedConfig | None:
    """For `from_pretrained`: each process reads its part of the weights; None where there is one process."""
    return DistributedConfig(fsdp_size=count()) if count() > 1 else None


def is_sharded(model: Any) -> bool:
    """Whether the model's weights are spread over the processes."""
    return bool(getattr(model, "is_distributed_loading_by_transformers", False))


def call_by_hooks(model: PeftModel) -> None:
    """Let a call of the adapted model be a call of its base, as whose hooks FSDP gathers weights; PEFT calls the
    base's `forward` alone."""
    tuner: Any = model.base_model
    if is_sharded(tuner.model):
        tuner.forward = lambda *arguments, **options: tuner.model(*arguments, **options)


class AveragedAdapters:
    """For a Trainer of adapters on a sharded base: their gradients are averaged by sums, which every back end has.

    Transformers asks for averages, and gloo, which CPUs need, has none.
    """

    def _sync_replicated_trainable_parameters(self, model: torch.nn.Module) -> None:
        def average(parameter: torch.Tensor) -> None:
            if self.accelerator.sync_gradients and parameter.grad is not None:  # type: ignore[attr-defined]
                torch.distributed.all_reduce(parameter.grad)
                parameter.grad.div_(count())

        for parameter in model.parameters():
            if parameter.requires_grad:
                with torch.no_grad():
                    torch.distributed.broadcast(parameter.data, src=0)
                parameter.register_post_accumulate_grad_hook(average)
