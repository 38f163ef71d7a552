"""The sections of single steps: each calls `llm-detox` in the capture's folder and stores what it wrote."""

from __future__ import annotations

import json
from pathlib import Path

from tests.golden.commands import ADAPTER, TOKENIZER, overrides, run, run_step
from tests.golden.store import Store

_PROMPTS = ("--prompts", "data/prompts.jsonl")


def detoxify(store: Store) -> None:
    """Every method that needs no large model, alone and in a chain; and the refusal of requests."""
    accepting = ("accept_toxicity=1", "accept_fluency=1e300", "largest_masked_share=0.5", "toxic_threshold=0.65")
    bart = [f"models/bart-{number}" for number in range(3)]
    variants: dict[str, tuple[str, ...]] = {
        "delete": ("methods=[delete]",),
        "causal": ("methods=[causal]", "causal.contrast=0.5", "fluency_contexts=['', 'you are ']"),
        "chain": ("tidy=true", "otherwise=keep"),
        "tmarco": ("methods=[tmarco]", *accepting, "tmarco.threshold=0.9", f"tmarco.base={bart[0]}",
                   f"tmarco.experts=[{bart[1]}, {bart[2]}]"),
        "marco": ("methods=[marco]", *accepting, "marco.threshold=1.0", "marco.preset=sbf", f"marco.base={bart[0]}",
                  f"marco.expert={bart[1]}", f"marco.anti_expert={bart[2]}"),
        "paraphrase": ("methods=[paraphrase]", *accepting, "paraphrase.model=models/other",
                       "paraphrase.max_new_tokens=12", "paraphrase.candidates=2"),
        "refusal": ("refusal=I would rather not.", "toxic_threshold=0.7"),
    }
    for name, settings in variants.items():
        texts = "answered" if name == "refusal" else "texts"
        run_step(store, name, "detoxify", "--input", f"data/{texts}.jsonl", *overrides("detoxify", settings))


def rephrasers(store: Store) -> None:
    """Experts and paraphrasers trained, and preference pairs of a paraphraser's own rewrites."""
    few = overrides("rephraser_training", ("batch_size=4", "learning_rate=1e-2"))
    bart = overrides("rephraser_training", ("base=models/bart-0",))
    for base, more in (("llama", ()), ("bart", bart)):
        run_step(store, f"experts-{base}", "train-experts", "--input", "data/classes.jsonl", *few, *more,
                 left_out=[f"{expert}/{name}" for expert in ("expert", "anti_expert") for name in TOKENIZER])
        run_step(store, f"paraphraser-{base}", "train-paraphraser", "--input", "data/pairs.jsonl", *few, *more,
                 left_out=TOKENIZER)
    drawing = ("paraphrase.model=paraphraser-llama", "paraphrase.max_new_tokens=12", "paraphrase.candidates=3",
               "accept_toxicity=1", "accept_fluency=1e300")
    run_step(store, "preferences", "paraphrase-pairs", "--input", "data/pairs.jsonl", *overrides("detoxify", drawing))


def evaluation(store: Store) -> None:
    """Two arms measured whole and in shards, compared and reported."""
    for arm, model in (("base", "models/llama"), ("dpo", "models/other")):
        run_step(store, arm, "evaluate", "--model", model, *_PROMPTS, "--clean", "data/clean.jsonl", "--arm", arm)
    for shard in ("0", "1"):
        run_step(store, f"shard-{shard}", "evaluate", "--model", "models/llama", *_PROMPTS, "--shard", f"{shard}/2",
                 left_out=("report.json", "values.json"))
    run_step(store, "joined", "evaluate", "--model", "models/llama", *_PROMPTS, "--arm", "base",
             *(word for shard in ("0", "1") for word in ("--generations", f"shard-{shard}/generations.jsonl")),
             left_out=("generations.jsonl", "values.json"), hashed=("report.json",))
    store.text("compared.txt", run("evaluate", "compare", "base", "dpo", "--samples", "1000"))
    store.value("compared", json.loads(run("compare", "base", "dpo", "--samples", "1000", "--json")))
    run_step(store, "report", "report", "--arm", "base=base", "--arm", "dpo=dpo", code=3,
             left_out=("report.json", "manifest.json"))


def training(store: Store) -> None:
    """SFT in its variants and DPO behind it: the figures of each step, and the weights by their digests."""
    texts = ("--input", "data/texts.jsonl", "--clean", "data/clean.jsonl")
    variants: dict[str, tuple[str, ...]] = {
        "sft-plain": texts,
        "sft-nf4": (*texts, *overrides("training", ("quantization=nf4", "lora.dropout=0.1", "sft.max_steps=3"))),
        "sft-packed": (*texts, *overrides("training.sft", ("packing=true", "accumulation=2"))),
        "sft-full": (*texts, *overrides("training.sft", ("method=full", "max_steps=2"))),
        "sft-answers": ("--input", "data/answered.jsonl")}
    for name, words in variants.items():
        run_step(store, name, "sft", *words, left_out=TOKENIZER, hashed=ADAPTER if name != "sft-plain" else ())
    run("detoxify", "--recipe", "small.yaml", "--input", "data/texts.jsonl", "--output", "rewritten")
    inputs = ("--adapter", "sft-plain", "--records", "rewritten/records.jsonl", *_PROMPTS, "--clean",
              "data/clean.jsonl")
    losses: dict[str, tuple[str, ...]] = {
        "dpo-plain": (), "dpo-anchored": ("likelihood_weight=0.1", "anchor_weight=0.5", "anchor_samples=4"),
        "dpo-ipo": ("loss=ipo", "max_pairs=5", "learning_rate=1e-3")}
    for name, settings in losses.items():
        run_step(store, name, "dpo", *inputs, *overrides("training.dpo", settings), left_out=TOKENIZER,
                 hashed=ADAPTER if name != "dpo-anchored" else (*ADAPTER, "pairs.jsonl"))
    # Processors with AVX-512 BF16 multiply quantised weights in bfloat16: these figures are for the recording machine.
    run_step(store, "dpo-nf4", "dpo", *inputs, *overrides("training", ("quantization=nf4", "dpo.max_pairs=0")),
             left_out=TOKENIZER, hashed=(*ADAPTER, "metrics.jsonl", "manifest.json"))
    printed = json.loads(run("convert", "--model", "dpo-plain", "--output", "converted", "--json"))
    store.value("converted/printed", printed)
    store.step("converted", Path("converted"))
