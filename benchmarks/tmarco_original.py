"""TMaRCo against the original's own code, sentence by sentence, and how much faster it is.

    pip install --no-deps --target FOLDER trustyai==0.6.2
    python -m benchmarks.tmarco_original --original FOLDER/trustyai/language/detoxify/tmarco.py

The original does not import with today's transformers: one name that it never uses is gone. That name is put back here,
the rest of its file runs as it is. Models are small BARTs with random weights, the same for both.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from pathlib import Path
from typing import Any

import torch

from llm_detox.rephrase.tmarco import TMaRCo
from tests.helpers import tiny_rewriters as tiny

WEIGHTS, THRESHOLD = [-0.5, 4.0], 0.6  # the reference example's


def load_original(path: Path) -> Any:
    """The class of the published file."""
    sys.modules["transformers"].__dict__["Conversation"] = type("Conversation", (), {})
    spec = importlib.util.spec_from_file_location("original_tmarco", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.TMaRCo


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--original", type=Path, required=True)
    parser.add_argument("--sentences", type=int, default=100)
    given = parser.parse_args()
    words = tiny.bart_tokenizer()
    base, anti, expert = (tiny.bart(seed, words) for seed in range(3))
    words.pad_token = words.eos_token  # as the original's constructor does
    original_class = load_original(given.original)
    original = original_class.__new__(original_class)
    original.tokenizer, original.base, original.experts = words, base, [anti, expert]
    original.expert_weights, original.device = WEIGHTS, torch.device("cpu")
    ours = TMaRCo(base, [anti, expert], WEIGHTS, tokenizer=words)
    texts = [text for text, _ in tiny.sentences(given.sentences, seed=11)]
    print("combine_original  equal of all  original s  ours s  ratio")
    for combine in (False, True):
        started = time.perf_counter()
        with torch.no_grad():
            scores = original.score(texts)
            masked = original.mask(texts, threshold=THRESHOLD, scores=scores)
            theirs = original.rephrase(texts, scores=scores, masked_outputs=masked, threshold=THRESHOLD,
                                       combine_original=combine)
        middle = time.perf_counter()
        rewrites = ours.rephrase(texts, THRESHOLD, combine)
        end = time.perf_counter()
        equal = sum(one == other for one, other in zip(theirs, rewrites, strict=True))
        print(f"{combine!s:16}  {equal:5} of {len(texts):3}  {middle - started:10.1f}  {end - middle:6.1f}  "
              f"{(middle - started) / (end - middle):5.1f}")


if __name__ == "__main__":
    main()
