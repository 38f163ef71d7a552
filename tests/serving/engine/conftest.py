"""A running engine over a tiny model, and what transformers says of that model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.serving.engine.running import Engine, running_engine


@pytest.fixture(scope="session")
def engine(engine_model: Path) -> Iterator[Engine]:
    with running_engine(engine_model, "--max-batch-size", "8", "--max-new-tokens", "200",
                        "--max-concurrent-requests", "12") as found:
        yield found


@pytest.fixture(scope="session")
def reference(engine_model: Path) -> Any:
    """What transformers generates: (text) -> new ids."""
    model = AutoModelForCausalLM.from_pretrained(engine_model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(engine_model)

    def text_of(ids: list[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=True)).rstrip("�")

    def run(text: str, **options: Any) -> list[int]:
        encoded = tokenizer(text, return_tensors="pt")
        with torch.inference_mode():
            ids = model.generate(**encoded, do_sample=False, **options)
        return list(ids[0, encoded["input_ids"].shape[1]:].tolist())

    run.tokenizer, run.text_of = tokenizer, text_of  # type: ignore[attr-defined]
    return run
