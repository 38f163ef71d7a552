"""Our continuations through vLLM against vLLM's own offline API: continuations per second, in an environment with vLLM.

    PYTHON -m benchmarks.vllm_offline --model FOLDER --output FILE.json [--prompts 8] [--rounds 3]

PYTHON belongs to an environment with vLLM, pydantic, PyYAML and rich. One engine, with the settings of an evaluation,
draws in turns: through `VllmGenerator`, through `LLM.generate` with the same prompts, sampling parameters and seeds,
and through `LLM.generate` without seeds. `same_texts` is the share of the first way's texts that the second one gives
as well. On a CPU the engine does not compile the model. `benchmarks.evaluate_speed --vllm-python PYTHON` runs this
beside its other ways.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.evaluate_prompts import chosen
from llm_detox.generation.next_token import row_key
from llm_detox.generation.vllm_generator import VllmGenerator
from llm_detox.progress import say
from llm_detox.recipe.evaluation import SamplingSection

K = 25


def ours(continuer: VllmGenerator, prompts: list[str], sampling: SamplingSection, seed: int) -> list[list[str | None]]:
    keys = [str(number) for number in range(len(prompts))]
    drawn = dict(continuer.continuations(prompts, k=K, sampling=sampling, seed=seed, keys=keys))
    return [drawn[number] for number in range(len(prompts))]


def own(continuer: VllmGenerator, prompts: list[str], sampling: SamplingSection,
        seed: int | None) -> list[list[str | None]]:
    """As vLLM's documentation draws many continuations; the seeds are those that ours takes."""
    from vllm import SamplingParams  # type: ignore[import-not-found]

    seeds = [None if seed is None else row_key(seed, str(number), 0) & 0x7FFFFFFF for number in range(len(prompts))]
    asked = [SamplingParams(n=K, temperature=sampling.temperature, top_p=sampling.top_p,
                            max_tokens=sampling.max_new_tokens, seed=one) for one in seeds]
    return [[one.text.rstrip("\ufffd") for one in answer.outputs]
            for answer in continuer.llm.generate(prompts, asked, use_tqdm=False)]


def measured(continuer: VllmGenerator, prompts: list[str], sampling: SamplingSection, rounds: int) -> dict[str, Any]:
    rates: dict[str, list[float]] = {}
    same: list[bool] = []

    def timed(name: str, act: Callable[[], list[list[str | None]]]) -> list[list[str | None]]:
        started = time.perf_counter()
        texts = act()
        rates.setdefault(name, []).append(K * len(prompts) / (time.perf_counter() - started))
        say(f"{name}: {rates[name][-1]:.2f} continuations/s")
        return texts

    for way in (ours, own):  # first calls set things up
        way(continuer, prompts[:1], sampling, 0)
    for turn in range(rounds):
        ways = [("ours through vLLM", lambda turn=turn: ours(continuer, prompts, sampling, turn)),
                ("vLLM's own", lambda turn=turn: own(continuer, prompts, sampling, turn))]
        first, second = (timed(*way) for way in (ways if turn % 2 == 0 else ways[::-1]))
        same += [left == right for one, other in zip(first, second, strict=True)
                 for left, right in zip(one, other, strict=True)]
        timed("vLLM's own, without seeds", lambda: own(continuer, prompts, sampling, None))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    return {"continuations_per_second": medians, "rounds": rates, "prompts": len(prompts),
            "same_texts": statistics.mean(same),
            "over_own": medians["ours through vLLM"] / medians["vLLM's own"],
            "over_own_without_seeds": medians["ours through vLLM"] / medians["vLLM's own, without seeds"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    found = measured(VllmGenerator(options.model), chosen(options.prompts), SamplingSection(), options.rounds)
    options.output.write_text(json.dumps(found, indent=2), "utf-8")


if __name__ == "__main__":
    main()
