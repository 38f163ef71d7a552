"""A training on a tiny model: its recipe, its texts, and what it leaves behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from llm_detox.recipe import Recipe
from tests.helpers.sources import make_sources, write_lines

TEXTS = ["the quick brown fox jumps over the lazy dog", "what a fine day", "thank you for the lovely dinner",
         "a walk in the park", "the train leaves at noon and arrives in the evening", "you are my friend"]


def small_recipe(folder: Path, model: Path, **training: Any) -> Recipe:
    values = make_sources(folder)
    values["model"]["source"] = str(model)
    values["scoring"]["training"]["source"] = values["data"]["texts"]["source"]
    values["training"] = {
        "quantization": "none", "lora": {"r": 4, "alpha": 8},
        "sft": {"batch_size": 2, "max_length": 32, "learning_rate": 1e-2},
        "dpo": {"batch_size": 2, "max_length": 48, "learning_rate": 1e-2, "beta": 0.5, "margin": 0.0,
                "samples_per_prompt": 3},
        **training}
    values["evaluation"] = {"sampling": {"max_new_tokens": 6}}
    return Recipe.model_validate(values)


def texts_file(folder: Path) -> Path:
    return write_lines(folder / "texts.jsonl", [{"text": text} for text in TEXTS])


def losses(folder: Path) -> list[float]:
    lines = (folder / "metrics.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line)["loss"] for line in lines]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "adapter_model.safetensors")
