"""What a capture works on: tiny models, made-up data, and recipes with relative paths.

Relative, because a recipe's digest covers its paths: a capture runs inside its own folder.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from tests.golden.models import save_bart, save_llama
from tests.golden.sentences import sentences

_LABELLED, _TEXTS, _PROMPTS, _PASSAGES = 1500, 14, 10, 10
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_TABLES = {
    "prompts": {"sources": ["owner/prompts"], "evaluation_count": 6, "training_count": 6},
    "clean": {"sources": ["owner/passages"], "count": 4, "training_count": 4}}
_EVALUATION = {"clean_continuations": 1, "bootstrap_samples": 1000, "sampling": {"max_new_tokens": 8}}


def write_inputs(folder: Path) -> None:
    """Write `models/`, `data/` and the recipes into the folder."""
    for name, seed in (("llama", 0), ("other", 5)):
        save_llama(folder / "models" / name, seed=seed)
    save_llama(folder / "models/served", seed=0, likely_end=True)
    for seed in range(3):
        save_bart(folder / f"models/bart-{seed}", seed=seed)
    _write_data(folder / "data")
    for name, recipe in (("small", _small()), ("rehearsed", _rehearsed()), ("judging", _judging()),
                         ("refusing", _refusing())):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False), "utf-8")


def _write_data(folder: Path) -> None:
    folder.mkdir()
    for name, seed in (("labelled", 11), ("judged", 12)):
        _write_labelled(folder / f"{name}.csv", seed)
    texts = sentences(_TEXTS, seed=13)
    _write_lines(folder / "texts.jsonl", ({"id": f"t{number}", "text": text} for number, (text, _) in enumerate(texts)))
    _write_lines(folder / "classes.jsonl", ({"text": text, "toxic": rude} for text, rude in texts))
    _write_lines(folder / "pairs.jsonl", (
        {"toxic": rude, "neutral": kind} for (rude, _), (kind, _) in zip(
            filter(lambda pair: pair[1], texts), filter(lambda pair: not pair[1], texts), strict=True)))
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
    rows = [f'{int(rude != (number % 9 == 0))},"{text}"'
            for number, (text, rude) in enumerate(sentences(_LABELLED, seed=seed))]
    path.write_text("is_offensive,text\n" + "\n".join(rows) + "\n", "utf-8")


def _write_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), "utf-8")


def _small() -> dict[str, Any]:
    """The recipe of the single steps: everything in it is here."""
    return {
        "name": "small", "seed": 7, "model": {"source": "models/llama"}, "budget": {"scale": 1.0},
        "data": {
            "texts": {"source": "data/labelled.csv", "count": 24, "min_chars": 20},
            "prompts": {"sources": [{"source": "data/prompts.jsonl", "text_column": "prompt.text"}, "data/texts.jsonl"],
                        "evaluation_count": 8, "training_count": 8},
            "clean": {"sources": ["data/clean.jsonl"], "count": 6, "training_count": 4, "max_chars": 80}},
        "scoring": {"training": {"kind": "ngram", "source": "data/labelled.csv"},
                    "judging": {"kind": "ngram", "source": "data/judged.csv"}},
        "detoxify": {"similarity_model": None, "accept_similarity": 0, "accept_fluency": 50, "toxic_threshold": 0.5},
        "training": {"quantization": "none", "lora": {"r": 4, "alpha": 8}, **_training(max_length=40)},
        "evaluation": {"continuations": 3, "clean_prompts": 4, "fluency_model": "models/other", **_EVALUATION},
        "gate": {"min_prompts": 5},
    }


def _rehearsed() -> dict[str, Any]:
    """A recipe whose sources exist nowhere: a rehearsal puts tiny ones in their place."""
    return {
        "name": "rehearsed", "model": {"source": "owner/llama"},
        "data": {"texts": {"source": "owner/comments", "count": 16}, **_TABLES},
        "scoring": {"training": {"kind": "ngram"}, "judging": {"kind": "bilstm"}},
        "detoxify": {"similarity_model": None, "accept_fluency": 50},
        "training": {"quantization": "none", **_training(max_length=64)},
        "evaluation": {"continuations": 2, "clean_prompts": 2, **_EVALUATION, "toxic_threshold": 0.8},
        "gate": {"min_prompts": 3},
    }


def _judging() -> dict[str, Any]:
    """A judge of answers is trained and asked."""
    sft = {"batch_size": 2, "max_steps": 2, "max_length": 2048, "learning_rate": 1e-2}
    return {**_rehearsed(), "name": "judging",
            "training": {"quantization": "none", "sft": sft, "dpo": {"enabled": False, "max_pairs": 0}},
            "judge": {"adversarial": ["owner/harmful"], "benign": ["owner/harmless"], "reader": {"max_new_tokens": 8}}}


def _refusing() -> dict[str, Any]:
    """Requests are refused, the output layer is adapted, and three arms are asked."""
    texts = {"source": "owner/hate", "answer_column": "answer", "chat": True, "label_column": None, "count": 10,
             "min_chars": 1, "benign": [{"source": "owner/harmless", "answer_column": "response", "count": 6}]}
    sft = {"batch_size": 4, "max_steps": 3, "max_length": 96, "learning_rate": 1e-2}
    return {**_rehearsed(), "name": "refusing", "data": {"texts": texts, **_TABLES},
            "detoxify": {"refusal": "I would rather not.", "toxic_threshold": 0.5, "similarity_model": None},
            "training": {"quantization": "none", "lora": {"target_modules": ["q_proj", "v_proj", "lm_head"]},
                         "sft": sft, "dpo": {"enabled": False, "max_pairs": 0}},
            "stop_hate": {"hate": [{"source": "owner/hate", "column": "text"}], "benign": ["owner/harmless"],
                          "count": 4, "answer": {"max_new_tokens": 8}}}


def _training(*, max_length: int) -> dict[str, Any]:
    """Few steps at a rate that changes what the model writes."""
    both = {"batch_size": 4, "max_length": max_length, "learning_rate": 1e-2}
    return {"sft": both,
            "dpo": {**both, "margin": 0.0, "samples_per_prompt": 3, "max_pairs": 8, "rewrite_pairs": 4}}
