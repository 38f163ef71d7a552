"""What `test_generation_vllm.py` has done in an interpreter with vLLM.

    python -m tests.helpers.vllm_draws MODEL ADAPTER OUT

vLLM starts processes that import this module again, so its work is in `main`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from llm_detox.errors import DetoxError
from llm_detox.generation import vllm_generator
from llm_detox.generation.vllm_generator import VllmGenerator
from llm_detox.recipe.evaluation import SamplingSection

PROMPTS = ["the quick", "you are a stupid idiot and", "what", "the train to the city leaves", "thank you for the",
           "this is a fine day"]
TEXTS = ["the train to the city leaves at noon", "you are a fool", "x", "", "naïve café 日本語 " * 3]
EVEN = SamplingSection(top_p=1.0, max_new_tokens=8)
LIKELIEST = SamplingSection(top_p=1e-6, max_new_tokens=8)  # a nucleus of one token


def draw(continuer: VllmGenerator, numbers: Sequence[int], sampling: SamplingSection = EVEN, k: int = 3,
         seed: int = 5) -> tuple[dict[str, list[str | None]], int]:
    """Prompt -> its continuations, and how many the progress told of."""
    told: list[int] = []
    drawn = continuer.continuations([PROMPTS[n] for n in numbers], k=k, sampling=sampling, seed=seed,
                                    keys=[f"p{n}" for n in numbers], on_progress=told.append)
    return {PROMPTS[numbers[index]]: texts for index, texts in drawn}, sum(told)


def main(model: str, adapter: str, out: Path) -> None:
    continuer = VllmGenerator(model, max_num_seqs=16)
    everyone = list(range(len(PROMPTS)))
    found: dict[str, object] = {}
    found["whole"], found["told"] = draw(continuer, everyone)
    found["again"], _ = draw(continuer, everyone)
    found["reversed"], _ = draw(continuer, everyone[::-1])
    found["shards"] = draw(continuer, everyone[::2])[0] | draw(continuer, everyone[1::2])[0]
    found["other seed"], _ = draw(continuer, everyone, seed=6)
    found["likeliest"], _ = draw(continuer, everyone, LIKELIEST, k=1)
    vllm_generator._IN_FLIGHT = 6  # two prompts at once, the others when one is done
    found["topped up"], _ = draw(continuer, everyone)
    left = continuer.continuations(PROMPTS, k=3, sampling=EVEN, seed=1, keys=PROMPTS)
    list(islice(left, 1))
    left.close()
    found["after a call that was given up"], _ = draw(continuer, everyone)
    try:
        list(continuer.continuations(["a", ""], k=1, sampling=EVEN, seed=1, keys=["a", "b"]))
    except DetoxError as error:
        found["error"] = str(error)
    told: list[int] = []
    found["losses"], found["losses told"] = continuer.losses(TEXTS, on_progress=told.append), sum(told)
    merged = VllmGenerator(adapter, max_num_seqs=16)
    found["adapter losses"] = merged.losses(TEXTS)
    found["adapter likeliest"], _ = draw(merged, everyone, LIKELIEST, k=1)
    out.write_text(json.dumps(found), "utf-8")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
