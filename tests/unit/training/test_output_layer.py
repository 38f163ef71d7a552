"""The output layer of training on a CPU gives TRL's numbers and gradients."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from trl.trainer.utils import add_fused_lm_head

from llm_detox.training import output_layer
from llm_detox.training.output_layer import LabelLogProbs, score_labels_only

VOCABULARY, WIDTH = 61, 16


@pytest.fixture
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, tie_word_embeddings=False))
    model.lm_head.weight.requires_grad_(False)
    return model


def _batch() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    tokens = torch.randint(0, VOCABULARY, (3, 11))
    labels = tokens.clone()
    labels[:, :4] = -100
    labels[1, 8:] = -100
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": labels}


def test_log_probabilities_loss_and_gradients_are_those_of_trl(model: LlamaForCausalLM) -> None:
    theirs = copy.deepcopy(model)
    for one in (model, theirs):
        add_fused_lm_head(one, outputs=("log_probs", "entropy", "mean_logits", "is_top1"))
    score_labels_only(model)
    weights = torch.randn(3, 10)
    found = [one(**_batch(), fused_lm_head=True) for one in (model, theirs)]
    for output in found:
        (output.loss + (output.log_probs * weights).sum()).backward()

    torch.testing.assert_close(found[0].log_probs, found[1].log_probs)
    torch.testing.assert_close(found[0].loss, found[1].loss)
    assert torch.equal(found[0].label_mask, found[1].label_mask)
    assert torch.equal(found[0].is_top1 & found[0].label_mask, found[1].is_top1 & found[1].label_mask)
    for (name, ours), (_, other) in zip(model.named_parameters(), theirs.named_parameters(), strict=True):
        if ours.requires_grad:
            assert ours.grad is not None, name
            torch.testing.assert_close(ours.grad, other.grad)


def test_pieces_give_what_one_piece_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(2)
    weight, labels = torch.randn(VOCABULARY, WIDTH) / WIDTH, torch.randint(0, VOCABULARY, (13,))
    outcomes = []
    for at_once in (2**25, 4 * VOCABULARY, 1):
        monkeypatch.setattr(output_layer, "LOGITS_AT_ONCE", at_once)
        hidden = torch.randn(13, WIDTH, generator=torch.Generator().manual_seed(3), requires_grad=True)
        log_probs, _ = LabelLogProbs.apply(hidden, weight, None, labels)
        (log_probs * torch.arange(13)).mean().backward()
        outcomes.append((log_probs.detach(), hidden.grad))
    for log_probs, gradient in outcomes[1:]:
        torch.testing.assert_close(log_probs, outcomes[0][0])
        torch.testing.assert_close(gradient, outcomes[0][1])


def test_the_gradient_is_the_numerical_one() -> None:
    torch.manual_seed(4)
    weight, bias = torch.randn(7, 5, dtype=torch.float64), torch.randn(7, dtype=torch.float64)
    hidden, labels = torch.randn(4, 5, dtype=torch.float64, requires_grad=True), torch.randint(0, 7, (4,))
    log_probs, _ = LabelLogProbs.apply(hidden, weight, bias, labels)
    log_probs.sum().backward()
    expected, = torch.autograd.grad(
        torch.log_softmax(hidden @ weight.T + bias, 1).gather(1, labels[:, None]).sum(), hidden)
    torch.testing.assert_close(hidden.grad, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("change", ["trained layer", "logit scale"])
def test_a_model_that_needs_more_keeps_the_layer_of_trl(model: LlamaForCausalLM, change: str) -> None:
    if change == "trained layer":
        model.lm_head.weight.requires_grad_(True)
    else:
        model.config.logits_scaling = 2.0
    add_fused_lm_head(model)
    before = model.forward
    score_labels_only(model)
    assert model.forward == before


def test_without_the_flag_the_forward_is_the_models_own(model: LlamaForCausalLM) -> None:
    batch = _batch()
    expected = model(**batch)
    add_fused_lm_head(model)
    score_labels_only(model)
    found = model(**batch)
    torch.testing.assert_close(found.logits, expected.logits)
    torch.testing.assert_close(found.loss, expected.loss)
