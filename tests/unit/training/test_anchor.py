"""The anchor of preference training: whose words it is made of, and what it weighs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llm_detox.errors import DetoxError
from llm_detox.generation.models import load_tokenizer
from llm_detox.recipe import Recipe
from llm_detox.training import anchor
from llm_detox.training import dpo as dpo_step
from llm_detox.training import sft as sft_step
from llm_detox.training.anchor import anchor_rows, divergence, own_continuations, padded_with_mask
from llm_detox.training.lora import load_training_base, new_adapter
from tests.helpers.sources import write_lines
from tests.helpers.training import small_recipe, texts_file

PASSAGES = [f"the train {number} leaves at noon and arrives in the evening with all the passengers" for number in
            ("one", "two", "three")]


def continuations(recipe: Recipe, model: Path, passages: list[str]) -> list[str]:
    return own_continuations(model, passages, count=recipe.training.dpo.anchor_samples,
                             sampling=recipe.evaluation.sampling, seed=recipe.seed)


def test_the_anchor_is_the_start_models_own_continuations_of_harmless_openings(
        tmp_path: Path, tiny_llama: Path) -> None:
    recipe = small_recipe(tmp_path, tiny_llama, dpo={"anchor_weight": 1.0, "anchor_samples": 8})
    texts = continuations(recipe, tiny_llama, PASSAGES)
    assert len(texts) == 8
    assert texts == continuations(recipe, tiny_llama, PASSAGES)
    for number, opening in enumerate(("the train one", "the train two leaves", "the train three leaves at")):
        own = [text for text in texts if text.startswith(opening)]
        assert len(own) == (3, 3, 2)[number]
        assert not any(text in PASSAGES[number] for text in own)
    assert continuations(recipe, tiny_llama, []) == []


def test_no_more_is_sampled_for_the_anchor_than_it_holds(
        tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(anchor, "sample_continuations", lambda model, tokenizer, prompts, *, k, **_: asked.append(
        k * len(prompts)) or [[" text"] * k for _ in prompts])
    recipe = small_recipe(tmp_path, tiny_llama, dpo={"anchor_weight": 1.0, "anchor_samples": 4})
    assert len(continuations(recipe, tiny_llama, PASSAGES)) == 4
    assert asked == [4]


def test_the_divergence_is_zero_at_the_start_and_sees_tokens_alone(tmp_path: Path, tiny_llama: Path) -> None:
    recipe = small_recipe(tmp_path, tiny_llama)
    model = new_adapter(load_training_base(str(tiny_llama), recipe.training), recipe.training.lora, seed=1)
    model.add_adapter("ref", model.peft_config["default"])
    rows = anchor_rows(load_tokenizer(tiny_llama), ["the brown fox", "a lazy dog jumps over the fence"], 32)
    ids, mask = padded_with_mask(rows, 0)
    assert divergence(model, ids, mask, start="ref").item() == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B.default" in name:
                parameter.normal_(std=0.2)
    together = divergence(model, ids, mask, start="ref").item()
    alone = [divergence(model, *padded_with_mask([row], 0), start="ref").item() for row in rows]
    assert together == pytest.approx(sum(len(row) * one for row, one in zip(rows, alone, strict=True))
                                     / sum(map(len, rows)), rel=1e-4)
    assert together > 1e-4
    assert model.active_adapter == "default"


def test_a_whole_model_cannot_be_anchored_and_says_what_to_change(tmp_path: Path, tiny_llama: Path) -> None:
    recipe = small_recipe(tmp_path / "data", tiny_llama, sft={"method": "full", "batch_size": 4, "max_length": 32},
                          dpo={"anchor_weight": 1.0})
    sft_step.train_sft(recipe, texts=texts_file(tmp_path), clean=None, output=tmp_path / "sft")
    some = write_lines(tmp_path / "some.jsonl", [{"prompt": "you are", "text": "you are"}])
    with pytest.raises(DetoxError, match="only an adapter"):
        dpo_step._anchor_texts(recipe.training.dpo, tmp_path / "sft", some, recipe.evaluation.sampling, recipe.seed)
