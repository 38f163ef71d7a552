"""Continuations per second against plain `generate`, same model, prompts and sampling, in one run.

    python -m benchmarks.evaluate_speed --model FOLDER [--prompts 8] [--rounds 3] [--output FILE.json]
        [--vllm-python PYTHON]

Three ways take turns in every round, so that a busy machine disturbs all alike; the medians are compared: our
sampling, `generate` with 25 returns for 4 prompts a call, and `generate` with one sequence a call. Beside them
stands the arithmetic floor: the products that the sampled tokens need, at the measured float32 matrix rate. With
--vllm-python, the interpreter of an environment with vLLM, our continuations through vLLM and those of its own offline
API take turns there (see `benchmarks.vllm_offline`), with the same prompts and sampling; FOLDER is then a path.
Exit code 1 where ours is under 1.5 times the second or under 8 times the third, or through vLLM under .95 of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.evaluate_prompts import chosen
from llm_detox.generation.models import load_model, load_tokenizer
from llm_detox.generation.sampling import sample_continuations
from llm_detox.processes import matmul_gflops, peak_memory_bytes
from llm_detox.progress import say
from llm_detox.recipe.evaluation import SamplingSection

TIMES_BATCHED, TIMES_SINGLE, TIMES_VLLM = 1.5, 8.0, 0.95
_ROOT = Path(__file__).parents[1]


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


def through_vllm(python: str, model: str, prompts: int, rounds: int) -> dict[str, Any]:
    """What `benchmarks.vllm_offline` measures in that interpreter."""
    env = {"VLLM_CPU_KVCACHE_SPACE": "2", **os.environ, "PYTHONPATH": str(_ROOT), "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory() as work:
        file = Path(work) / "vllm.json"
        subprocess.run([python, "-m", "benchmarks.vllm_offline", "--model", model, "--prompts", str(prompts),
                        "--rounds", str(rounds), "--output", str(file)], env=env, check=True)
        found: dict[str, Any] = json.loads(file.read_text("utf-8"))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--singles", type=int, default=4, help="continuations a round, one sequence a call")
    parser.add_argument("--batch-tokens", type=int, default=SamplingSection().batch_tokens)
    parser.add_argument("--vllm-python", help="interpreter of an environment with vLLM")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    model, tokenizer = load_model(options.model), load_tokenizer(options.model)
    sampling = SamplingSection(batch_tokens=options.batch_tokens)
    prompts = chosen(options.prompts)
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
    met = found["over_batched"] >= TIMES_BATCHED and found["over_single"] >= TIMES_SINGLE
    if options.vllm_python:
        found["vllm"] = through_vllm(options.vllm_python, options.model, options.prompts, options.rounds)
        met = met and found["vllm"]["over_own"] >= TIMES_VLLM
    text = json.dumps(found, indent=2)
    print(text)
    if options.output:
        options.output.write_text(text, "utf-8")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
