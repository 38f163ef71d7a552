"""A recipe whose rewriters are tiny."""

from __future__ import annotations

from pathlib import Path

from llm_detox.recipe import Recipe


def recipe(base: Path, **settings: object) -> Recipe:
    table = {"source": "nowhere"}
    return Recipe.model_validate({
        "name": "tiny", "model": {"source": str(base)},
        "data": {"texts": table, "prompts": {"sources": ["x"]}, "clean": {"sources": ["x"]}},
        "scoring": {"training": {"kind": "ngram"}, "judging": {"kind": "bilstm"}},
        "rephraser_training": {"learning_rate": 5e-3, "epochs": 8, "batch_size": 8, "lora": {"r": 8, "alpha": 16}},
        **settings,
    })
