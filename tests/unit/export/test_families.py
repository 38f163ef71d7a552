"""Every family that is promised: written by transformers 5, read by older releases, the same greedy tokens."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from llm_detox.export.converting import convert
from llm_detox.export.verify import verify_all
from tests.helpers.families import ROPE, SIZES, caikit_python, save_adapter, save_family

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {**SIZES, "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 300.0}},
    "mistral": {**SIZES, "rope_parameters": ROPE, "sliding_window": 64},
    "qwen2": {**SIZES, "rope_parameters": ROPE},
    "gemma": {**SIZES, "rope_parameters": ROPE},
    "gemma2": {**SIZES, "rope_parameters": ROPE, "sliding_window": 64, "query_pre_attn_scalar": 16},
    "granite": {**SIZES, "rope_parameters": ROPE, "logits_scaling": 2.0, "residual_multiplier": 0.5},
    "phi": {**SIZES, "rope_parameters": {**ROPE, "partial_rotary_factor": 0.25}},
    "gpt_neox": {**SIZES, "rope_parameters": {**ROPE, "partial_rotary_factor": 0.5}},
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128},
    "opt": {"hidden_size": 64, "ffn_dim": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
            "word_embed_proj_dim": 64, "max_position_embeddings": 128},
}
NEWER = {
    "qwen3": {**SIZES, "rope_parameters": ROPE},
    "gemma3_text": {**SIZES, "sliding_window": 64, "query_pre_attn_scalar": 16, "rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 900.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 300.0}}},
}
BEFORE_4_40 = {"llama", "mistral", "qwen2", "gemma", "phi", "gpt_neox", "gpt2", "opt"}
PROMPTS = ["the quick brown fox jumps over", "naïve café 日本語 you are"]


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Family -> converted folder of a base with its adapter."""
    root = tmp_path_factory.mktemp("families")
    found = {}
    for kind, settings in {**FAMILIES, **NEWER}.items():
        base = save_family(kind, settings, root / kind / "base")
        adapter = save_adapter(base, root / kind / "adapter")
        convert(model=str(adapter), output=root / kind / "out")
        found[kind] = root / kind / "out"
    return found


@pytest.mark.parametrize("kind", [*FAMILIES, *NEWER])
def test_adapters_of_the_family_are_merged_as_peft_does_it(converted: dict[str, Path], kind: str) -> None:
    out = converted[kind]
    base = AutoModelForCausalLM.from_pretrained(out.parent / "base", dtype=torch.float32)
    merged: Any = PeftModel.from_pretrained(base, out.parent / "adapter").merge_and_unload()
    exported: Any = AutoModelForCausalLM.from_pretrained(out / "artifacts", dtype=torch.float32)
    original = load_file(out.parent / "base" / "model.safetensors")
    assert set(load_file(out / "artifacts" / "model.safetensors")) == set(original)
    expected = {name: weight.to(torch.bfloat16).float() for name, weight in merged.state_dict().items()}
    for name, weight in exported.state_dict().items():
        torch.testing.assert_close(weight, expected[name], rtol=2**-7, atol=1e-6, msg=name)
    assert settings_of(merged) == settings_of(exported)


def settings_of(model: Any) -> dict[str, Any]:
    """What decides a model's arithmetic, without notes on how it was loaded."""
    settings = model.config.to_dict()
    for note in ("_name_or_path", "dtype", "transformers_version"):
        settings.pop(note, None)
    (settings.get("rope_parameters") or {}).pop("type", None)  # an older name of rope_type
    return settings


@pytest.mark.slow
def test_the_runtimes_in_use_read_the_same_model(converted: dict[str, Path]) -> None:
    seen = verify_all([converted[kind] for kind in FAMILIES], [caikit_python()], prompts=PROMPTS, max_new_tokens=12)
    releases = {one["transformers"][:4] for one in seen[0]["readers"].values()}
    assert "4.49" in releases
    # Random weights of Gemma 2 repeat one token, another one for each prompt.
    assert all(len({token for answer in one["answers"] for token in answer["new_ids"]}) > 1 for one in seen)


@pytest.mark.slow
def test_the_oldest_reader_reads_the_same_model(converted: dict[str, Path]) -> None:
    python = os.environ.get("LLM_DETOX_TGIS_PYTHON")
    if not python:
        pytest.skip("set LLM_DETOX_TGIS_PYTHON to a Python with transformers 4.40.2 and tokenizers 0.19.1")
    seen = verify_all([converted[kind] for kind in FAMILIES if kind in BEFORE_4_40], [python], prompts=PROMPTS,
                      max_new_tokens=12)
    assert any(one["transformers"].startswith("4.40") for one in seen[0]["readers"].values())


def test_what_older_readers_do_not_know_is_said(converted: dict[str, Path], tmp_path: Path) -> None:
    for kind in (*FAMILIES, *NEWER):
        manifest = json.loads((converted[kind] / "manifest.json").read_text())
        tgis, caikit = manifest["result"]["readers"].values()
        assert (tgis == "yes") == (kind in BEFORE_4_40), kind
        assert (caikit == "yes") == (kind in FAMILIES), kind
        if tgis != "yes":
            assert kind in tgis
