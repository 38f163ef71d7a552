"""A frozen base in shards over the processes of a run (FSDP2), with the small adapters whole in each of them."""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel
from transformers.distributed.configuration_utils import DistributedConfig

from llm_detox.training import ranks


def sharding_options() -> dict[str, Any]:
    """For `from_pretrained`: each process reads its part of the weights; nothing where there is one process."""
    return {"distributed_config": DistributedConfig(fsdp_size=ranks.count())} if ranks.count() > 1 else {}


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
                parameter.grad.div_(ranks.count())

        for parameter in model.parameters():
            if parameter.requires_grad:
                with torch.no_grad():
                    torch.distributed.broadcast(parameter.data, src=0)
                parameter.register_post_accumulate_grad_hook(average)
