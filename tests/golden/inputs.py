"""What a capture works on: tiny models, made-up sentences with mild insults, and recipes with relative paths.

Relative, because a recipe's digest covers its paths: a capture runs inside its own folder.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import BartConfig, BartForConditionalGeneration, PreTrainedTokenizerFast

from tests.tiny import save_tiny_llama
from tests.unit import rephrase_tiny

_LABELLED, _TEXTS, _PROMPTS, _PASSAGES = 1500, 18, 10, 10
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_EVALUATION = {"clean_continuations": 1, "bootstrap_samples": 1000, "sampling": {"max_new_tokens": 8}}
_EMBEDDING = "model.embed_tokens.weight"


def write_inputs(folder: Path) -> None:
    """Write `models/`, `data/` and the recipes `small.yaml` (few tokens) and `rehearsed.yaml` into the folder."""
    _write_models(folder / "models")
    _write_data(folder / "data")
    for name, recipe in (("small", _small()), ("rehearsed", _rehearsed())):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False), "utf-8")


def _write_models(folder: Path) -> None:
    save_tiny_llama(folder / "llama")
    save_tiny_llama(folder / "other", seed=5)
    _make_ends_likely(save_tiny_llama(folder / "served") / "model.safetensors")
    words = rephrase_tiny.bart_tokenizer()
    for number in range(3):
        _save_bart(folder / f"bart-{number}", words, seed=number)


def _make_ends_likely(weights: Path) -> None:
    """Give the end of sequence a logit that is small, but not zero, so that penalties act on it."""
    tensors = load_file(weights)
    tensors[_EMBEDDING][1] = 0.05 * tensors[_EMBEDDING][2]
    save_file(tensors, weights, metadata={"format": "pt"})


def _save_bart(folder: Path, words: PreTrainedTokenizerFast, *, seed: int) -> None:
    """A BART of two layers that can write as many tokens as MaRCo asks for."""
    torch.manual_seed(seed)
    config = BartConfig(
        vocab_size=len(words), d_model=16, encoder_layers=2, decoder_layers=2, encoder_ffn_dim=32, decoder_ffn_dim=32,
        encoder_attention_heads=2, decoder_attention_heads=2, max_position_embeddings=256, init_std=0.5,
        bos_token_id=0, pad_token_id=1, eos_token_id=2, decoder_start_token_id=2, forced_eos_token_id=2)
    BartForConditionalGeneration(config).save_pretrained(folder)
    words.save_pretrained(folder)


def _write_data(folder: Path) -> None:
    folder.mkdir()
    for name, seed in (("labelled", 11), ("judged", 12)):
        _write_labelled(folder / f"{name}.csv", seed)
    _write_lines(folder / "texts.jsonl", (
        {"id": f"t{number}", "text": text}
        for number, (text, _) in enumerate(rephrase_tiny.sentences(_TEXTS, seed=13))))
    _write_lines(folder / "prompts.jsonl", (
        {"id": f"p{number}", "challenging": number == 3,
         "prompt": {"text": f"on {_DAYS[number % 7]} number {number} what a fine", "toxicity": number / _PROMPTS}}
        for number in range(_PROMPTS)))
    _write_lines(folder / "clean.jsonl", (
        {"id": f"c{number}", "text": f"The train number {number} to the city leaves at noon on {_DAYS[number % 7]} and "
                                     "arrives in the evening."} for number in range(_PASSAGES)))
    _write_lines(folder / "answered.jsonl", (
        {"text": f"what do you say on {day}", "prompt": f"what do you say on {day}", "completion": " thank you"}
        for day in _DAYS))


def _write_labelled(path: Path, seed: int) -> None:
    """Every ninth label is wrong: a scorer fitted to perfect ones would know nothing between 0 and 1."""
    rows = [f'{int(toxic != (number % 9 == 0))},"{text}"'
            for number, (text, toxic) in enumerate(rephrase_tiny.sentences(_LABELLED, seed=seed))]
    path.write_text("is_offensive,text\n" + "\n".join(rows) + "\n", "utf-8")


def _write_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), "utf-8")


def _small() -> dict[str, Any]:
    return {
        "name": "small", "seed": 7, "model": {"source": "models/llama"}, "budget": {"scale": 1.0},
        "data": {
            "texts": {"source": "data/labelled.csv", "count": 24, "min_chars": 20},
            "prompts": {"sources": [{"source": "data/prompts.jsonl", "text_column": "prompt.text"}, "data/texts.jsonl"],
                        "evaluation_count": 8, "training_count": 8},
            "clean": {"sources": ["data/clean.jsonl"], "count": 6, "training_count": 4, "max_chars": 80}},
        "scoring": {"training": {"kind": "ngram", "source": "data/labelled.csv"},
                    "judging": {"kind": "ngram", "source": "data/judged.csv"}},
        "detoxify": {"similarity_model": None, "accept_similarity": 0, "accept_fluency": 50, "toxic_threshold": 0.4},
        "training": {"quantization": "none", "lora": {"r": 4, "alpha": 8}, **_training(max_length=40)},
        "evaluation": {"continuations": 3, "clean_prompts": 4, "fluency_model": "models/other", **_EVALUATION,
                       "toxic_threshold": 0.6},
        "gate": {"min_prompts": 5},
    }


def _rehearsed() -> dict[str, Any]:
    """A recipe whose sources exist nowhere: a rehearsal puts tiny ones in their place."""
    return {
        "name": "rehearsed", "model": {"source": "owner/llama"},
        "data": {"texts": {"source": "owner/comments", "count": 16},
                 "prompts": {"sources": ["owner/prompts"], "evaluation_count": 6, "training_count": 6},
                 "clean": {"sources": ["owner/passages"], "count": 4, "training_count": 4}},
        "scoring": {"training": {"kind": "ngram"}, "judging": {"kind": "bilstm"}},
        "detoxify": {"similarity_model": None, "accept_fluency": 50},
        "training": {"quantization": "none", **_training(max_length=64)},
        "evaluation": {"continuations": 2, "clean_prompts": 2, **_EVALUATION, "toxic_threshold": 0.8},
        "gate": {"min_prompts": 3},
    }


def _training(*, max_length: int) -> dict[str, Any]:
    """Few steps at a rate that changes what the model writes."""
    both = {"batch_size": 4, "max_length": max_length, "learning_rate": 1e-2}
    return {"sft": both,
            "dpo": {**both, "margin": 0.0, "samples_per_prompt": 3, "max_pairs": 8, "rewrite_pairs": 4}}
