"""Continuations per second against plain `generate`, same model, prompts and sampling, in one run.

    python -m benchmarks.evaluate_speed --model FOLDER [--prompts 8] [--rounds 3] [--output FILE.json]

Three ways take turns in every round, so that a busy machine disturbs all alike; the medians are compared: our
sampling, `generate` with 25 returns for 4 prompts a call, and `generate` with one sequence a call. Beside them
stands the arithmetic floor: the products that the sampled tokens need, at the measured float32 matrix rate.
Exit code 1 where ours is under 1.5 times the second or under 8 times the third.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from llm_detox.generation.models import load_model, load_tokenizer
from llm_detox.generation.sampling import sample_continuations
from llm_detox.hardware import matmul_gflops, peak_memory_bytes
from llm_detox.progress import say
from llm_detox.recipe import SamplingSection

PROMPTS = [
    "I was walking home from work when", "The worst thing about this city is", "My neighbour thinks that",
    "You know what they say about people who", "When she opened the door he", "So I told him to",
    "Nobody in the meeting expected that the manager would", "The comments under the video were full of",
    "After the game the fans began to", "What really makes me angry about politicians is that they",
    "He looked at me and said", "In the old days a man",
]


def plain(model: Any, tokenizer: Any, prompts: list[str], k: int, sampling: SamplingSection, at_once: int,
          returns: int) -> int:
    """Continuations made by `generate`, `at_once` prompts a call with `returns` sequences each."""
    made = 0
    for first in range(0, len(prompts), at_once):
        inputs = tokenizer(prompts[first:first + at_once], return_tensors="pt", padding=True).to(model.device)
        for _ in range(k // returns):
            with torch.inference_mode():
                made += len(model.generate(
                    **inputs, do_sample=True, top_p=sampling.top_p, top_k=0, temperature=sampling.temperature,
                    max_new_tokens=sampling.max_new_tokens, num_return_sequences=returns,
                    pad_token_id=tokenizer.pad_token_id))
    return made


def floor_rate(model: Any, tokenizer: Any, prompts: list[str], k: int, sampling: SamplingSection) -> float:
    """Continuations a second if nothing but the weights' products took time."""
    head = model.get_output_embeddings().weight.numel()
    body = sum(parameter.numel() for parameter in model.parameters()) - head  # the embedding is looked up, or tied
    read = sum(len(tokens) for tokens in tokenizer(prompts)["input_ids"])
    drawn = len(prompts) * k * sampling.max_new_tokens
    work = 2 * ((read + drawn) * body + drawn * head)
    return len(prompts) * k / (work / 1e9 / matmul_gflops(2.0))


def measure(name: str, act: Callable[[], int], rates: dict[str, list[float]]) -> None:
    started = time.perf_counter()
    made = act()
    rates.setdefault(name, []).append(made / (time.perf_counter() - started))
    say(f"{name}: {rates[name][-1]:.2f} continuations/s")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--singles", type=int, default=4, help="continuations a round, one sequence a call")
    parser.add_argument("--batch-tokens", type=int, default=SamplingSection().batch_tokens)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    model, tokenizer = load_model(options.model), load_tokenizer(options.model)
    sampling = SamplingSection(batch_tokens=options.batch_tokens)
    prompts = (PROMPTS * -(-options.prompts // len(PROMPTS)))[:options.prompts]
    rates: dict[str, list[float]] = {}
    sample_continuations(model, tokenizer, prompts[:1], k=2, sampling=sampling, seed=0)  # first calls set things up
    for turn in range(options.rounds):
        measure("ours", lambda turn=turn: sum(map(len, sample_continuations(  # type: ignore[misc]
            model, tokenizer, prompts, k=25, sampling=sampling, seed=turn))), rates)
        measure("generate, 4 prompts x 25", lambda: plain(model, tokenizer, prompts, 25, sampling, 4, 25), rates)
        measure("generate, one a call",
                lambda: plain(model, tokenizer, prompts[:options.singles], 1, sampling, 1, 1), rates)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    found = {"continuations_per_second": medians, "rounds": rates,
             "over_batched": medians["ours"] / medians["generate, 4 prompts x 25"],
             "over_single": medians["ours"] / medians["generate, one a call"],
             "floor_continuations_per_second": floor_rate(model, tokenizer, prompts, 25, sampling),
             "device": str(model.device), "peak_memory_gib": peak_memory_bytes() / 2**30}
    text = json.dumps(found, indent=2)
    print(text)
    if options.output:
        options.output.write_text(text, "utf-8")
    return 0 if found["over_batched"] >= 1.5 and found["over_single"] >= 8 else 1


if __name__ == "__main__":
    sys.exit(main())
