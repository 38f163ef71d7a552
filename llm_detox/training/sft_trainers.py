"""The trainers behind SFT: TRL's, and one for models whose output layer carries an adapter, which TRL refuses."""

from __future__ import annotations

from typing import Any

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor
from transformers import PreTrainedModel, Trainer
from trl.trainer.sft_trainer import SFTTrainer

from llm_detox.training.batches import LikeLengthBatches


def adapts_output_layer(model: PreTrainedModel | PeftModel) -> bool:
    """Whether LoRA changes the output layer, so that logits must be computed through it."""
    return isinstance(model.get_output_embeddings(), BaseTunerLayer)


class TextTrainer(LikeLengthBatches, SFTTrainer):  # type: ignore[misc]
    """TRL's trainer with batches of like length; packed rows bring the number of their tokens along."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        tokens, before = inputs.pop("tokens", None), self._total_train_tokens
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)  # type: ignore[no-untyped-call]
        if tokens is not None:
            self._total_train_tokens = before + _over_processes(self, tokens)
            self._metrics["train"]["num_tokens"] = [self._total_train_tokens]
        return loss


class WholeLogitsTrainer(LikeLengthBatches, Trainer):  # type: ignore[misc]
    """The model's own loss over whole logits: TRL's reads the output layer's weight and would pass an adapter by."""

    _total_train_tokens = 0

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        tokens = inputs.pop("tokens", None)
        self._total_train_tokens += _over_processes(self, inputs["attention_mask"].sum() if tokens is None else tokens)
        return super().compute_loss(
            model, {**inputs, "use_cache": False}, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        super().log({**logs, "num_tokens": float(self._total_train_tokens)}, start_time)


def _over_processes(trainer: Trainer, tokens: Tensor) -> int:
    return int(trainer.accelerator.gather_for_metrics(tokens).sum())
