"""Tiny models of the architectures that recipes name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from llm_detox.generation.models import write_base_source
from tests.conftest import REPOSITORY
from tests.helpers.tiny import save_tiny_llama

SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 128}
ROPE = {"rope_type": "default", "rope_theta": 300.0}


def save_family(kind: str, settings: dict[str, Any], folder: Path) -> Path:
    """A tiny model of a family in bfloat16, with weights large enough that rope settings change the tokens."""
    save_tiny_llama(folder)  # its tokenizer stays
    torch.manual_seed(5)
    config = AutoConfig.for_model(kind, vocab_size=404, bos_token_id=0, eos_token_id=1, pad_token_id=1, **settings)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for name, weight in model.named_parameters():
        if "norm" not in name and weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.2)
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


def save_adapter(base: Path, folder: Path) -> Path:
    torch.manual_seed(6)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), LoraConfig(
        r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False))
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    write_base_source(folder, str(base))
    return folder



def caikit_python() -> str:
    python = os.environ.get("LLM_DETOX_CAIKIT_PYTHON") or str(
        REPOSITORY / ".venv-caikit" / "bin" / "python")
    if not Path(python).exists():
        pytest.skip("there is no Caikit environment (make install, or LLM_DETOX_CAIKIT_PYTHON)")
    return python
