"""The output layer of a model in training on a CPU: only where there is a label, and each logit computed once.

TRL's own form never holds all logits and computes them again for the gradient, which pays on a GPU; without Triton
it also scores prompts and padding. The gradient of a label's log-probability towards its hidden state, W[label] -
softmax(W h) W, is known as soon as the logits are, so it is kept instead of them.
"""

from __future__ import annotations

import functools
import types
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel
from trl.trainer.utils import FusedCausalLMOutput

from llm_detox.generation.likelihood import LOGITS_AT_ONCE, changes_logits
from llm_detox.training.encoding import IGNORED


class LabelLogProbs(torch.autograd.Function):
    """Log-probabilities of labels under softmax(W h + b), with the gradient towards h."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Score the labels in pieces of bounded size.

        Args:
            hidden: [n, h] float.
            weight: [v, h], not trained.
            bias: [v] or None, not trained.
            labels: [n] token ids.

        Returns:
            log-probabilities [n] float32, and whether each label is the likeliest token [n] bool.
        """
        towards_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        log_probs = torch.empty(len(labels), dtype=torch.float32, device=hidden.device)
        likeliest = torch.empty(len(labels), dtype=torch.bool, device=hidden.device)
        rows = max(1, LOGITS_AT_ONCE // len(weight))
        for start in range(0, len(labels), rows):
            part = slice(start, start + rows)
            logits = torch.nn.functional.linear(hidden[part], weight, bias).float()
            logits -= logits.amax(1, keepdim=True)
            label_logits = logits.gather(1, labels[part, None]).squeeze(1)
            likeliest[part] = label_logits == 0
            total = logits.exp_().sum(1)
            log_probs[part] = label_logits - total.log()
            if towards_hidden is not None:
                expected = (logits.to(weight.dtype) @ weight).float() / total[:, None]
                towards_hidden[part] = (weight[labels[part]].float() - expected).to(hidden.dtype)
        ctx.save_for_backward(towards_hidden)
        ctx.mark_non_differentiable(likeliest)
        return log_probs, likeliest

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        """The gradient towards h alone: weight and bias are frozen."""
        (towards_hidden,) = ctx.saved_tensors
        return gradients[0][:, None].to(towards_hidden.dtype) * towards_hidden, None, None, None


def score_labels_only(model: PreTrainedModel | PeftModel) -> None:
    """Let `model(..., labels=labels, fused_lm_head=True)`, as TRL's trainers call it, compute labelled positions only.

    Call it after TRL has put its own output layer on. A model that is on a GPU, trains its output layer, adds a
    loss of its own or changes its logits after the layer keeps TRL's. Entropy and mean logits, of which TRL
    makes metrics, are not computed: they are NaN.
    """
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    layer = base.get_output_embeddings()
    if (base.device.type != "cpu" or type(layer) is not torch.nn.Linear or layer.weight.requires_grad
            or changes_logits(base.config) or getattr(base.config.get_text_config(), "output_router_logits", False)):
        return
    before = base.forward

    @functools.wraps(type(base).forward)
    def forward(self: Any, *args: Any, fused_lm_head: bool = False, labels: Tensor | None = None,
                num_items_in_batch: Any = None, **options: Any) -> Any:
        if not fused_lm_head or labels is None or "shift_labels" in options:
            return before(*args, fused_lm_head=fused_lm_head, labels=labels, num_items_in_batch=num_items_in_batch,
                          **options)
        hidden = self.base_model(*args, **{**options, "use_cache": False}).last_hidden_state[:, :-1]
        return _output(hidden, layer.weight, layer.bias, labels[:, 1:], num_items_in_batch)

    base.forward = types.MethodType(forward, base)


def _output(hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, items: Any) -> FusedCausalLMOutput:
    mask = labels != IGNORED
    log_probs, likeliest = LabelLogProbs.apply(hidden[mask], weight, bias, labels[mask])  # type: ignore[no-untyped-call]
    spread = log_probs.new_zeros(mask.shape).masked_scatter(mask, log_probs)
    unknown = torch.full_like(spread, torch.nan)
    return FusedCausalLMOutput(
        loss=-spread.sum() / (mask.sum().clamp(min=1) if items is None else items), log_probs=spread,
        entropy=unknown, mean_logits=unknown, label_mask=mask,
        is_top1=torch.zeros_like(mask).masked_scatter(mask, likeliest))
