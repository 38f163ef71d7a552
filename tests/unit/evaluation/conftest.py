"""What tests of whole evaluations share: a small recipe, prompts, clean passages, a scorer without weights."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from llm_detox.evaluation import evaluate as step
from llm_detox.recipe import Recipe
from llm_detox.scoring.base import ToxicityScorer
from tests.helpers.sources import make_sources


class ByLength(ToxicityScorer):
    """A score that depends on the text alone."""

    def __init__(self, fingerprint: str = "length-1") -> None:
        super().__init__("length", fingerprint, ("toxicity", "insult"), batch_size=16)

    def score_batch(self, texts: Sequence[str]) -> Sequence[Mapping[str, float] | None]:
        return [{"toxicity": min(len(text) / 60, 1.0), "insult": 0.1} for text in texts]


def use(monkeypatch: pytest.MonkeyPatch, scorer: ToxicityScorer) -> None:
    monkeypatch.setattr(step, "load_scorer", lambda spec: scorer)


def small_recipe(folder: Path, model: Path) -> Recipe:
    values = make_sources(folder / "sources")
    values["model"]["source"] = str(model)
    values["evaluation"] = {"continuations": 3, "clean_prompts": 4, "clean_continuations": 2, "bootstrap_samples": 500,
                            "sampling": {"max_new_tokens": 6, "batch_tokens": 200}}
    values["detoxify"] = {"similarity_model": None}
    values["gate"] = {"max_perplexity_ratio": 100, "max_continuation_perplexity_ratio": 100, "min_distinct_ratio": 0.1}
    return Recipe.model_validate(values)


def save_prompts(folder: Path) -> Path:
    path = folder / "prompts.jsonl"
    records = [{"id": f"p{n}", "filename": f"{n}.txt", "challenging": n == 11, "continuation": {"text": " all"},
                "prompt": {"text": f"what a fine day {n} for", "toxicity": n / 12}} for n in range(12)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    return path


def save_clean(folder: Path) -> Path:
    path = folder / "clean.jsonl"
    path.write_text("".join(json.dumps({"id": str(n), "text": f"the train {n} leaves at noon and arrives"}) + "\n"
                            for n in range(6)), "utf-8")
    return path


@pytest.fixture
def recipe(tmp_path: Path, tiny_llama: Path) -> Recipe:
    return small_recipe(tmp_path, tiny_llama)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return save_prompts(tmp_path)


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    return save_clean(tmp_path)
