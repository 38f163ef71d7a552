"""Non-padding tokens per second of our SFT and DPO against a plain TRL script, same data and model, in one run.

    python -m benchmarks.train_speed [--recipe recipes/smollm2-demo.yaml] [--steps 15] [--rounds 3] [--output FILE.json]

Each training is a process of its own; the ways take turns in every round, and medians are compared. The clock runs
from the rows of text to the end of the last step, so tokenising and the reference's log-probabilities count; loading
the model does not. Tokens are counted where the batches are put together, in the same way for all.

The plain script is TRL's quick start: `SFTTrainer` or `DPOTrainer` with its default configuration on the recipe's base,
adapter and batch size. One default is not taken on a CPU, autocast to bfloat16, which few CPUs are made for;
`--bfloat16` adds that way too. Exit code 1 where ours is under 1.5 times as fast, or takes more memory.
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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from llm_detox.data.prepare import prepare_data
from llm_detox.data.records import read_jsonl
from llm_detox.processes import peak_memory_bytes
from llm_detox.progress import say
from llm_detox.recipe import Recipe
from llm_detox.recipe.files import load_recipe
from llm_detox.runs.artifacts import DataFolder

METHODS, WAYS = ("sft", "dpo"), ("ours", "trl", "trl, bfloat16")
PAIR_WORDS = 15  # a sampled completion has 20 tokens


def rows_of(recipe: Recipe, data: Path, method: str, steps: int) -> list[Any]:
    """As many rows as the steps take: (text) for SFT, (prompt, chosen, rejected) for DPO."""
    from llm_detox.training.encoding import clean_texts
    from llm_detox.training.pairs import prompt_texts

    texts = [record["text"] for record in read_jsonl(DataFolder(data).texts)]
    if method == "sft":
        clean = clean_texts(DataFolder(data).clean_train)
        mixed = [*texts, *clean]
        count = steps * recipe.training.sft.batch_size
        return [mixed[number * 7919 % len(mixed)] for number in range(count)]  # a prime: both kinds, no order
    ends = [" " + " ".join(text.split()[:PAIR_WORDS]) for text in texts]
    prompts, count = prompt_texts(DataFolder(data).train_prompts), steps * recipe.training.dpo.batch_size
    return [(prompts[number % len(prompts)], ends[number % len(ends)], ends[(3 * number + 1) % len(ends)])
            for number in range(count)]


def counted(trainer: Any, tokens: list[int]) -> Any:
    """The trainer, with its collator noting each training batch's tokens that are no padding."""
    collate = trainer.data_collator

    def count(rows: list[Any]) -> Any:
        batch = collate(rows)
        tokens.append(int(batch["attention_mask"].sum()))
        return batch

    trainer.data_collator = count
    return trainer


def ours(recipe: Recipe, method: str, rows: Sequence[Any], work: Path) -> Callable[[], Any]:
    """What makes our trainer for the rows."""
    from llm_detox.training import dpo, sft
    from llm_detox.training.encoding import tokenize
    from llm_detox.training.lora import load_training_base, load_training_tokenizer, new_adapter
    from llm_detox.training.pairs import Pair

    training = recipe.training
    base, tokenizer = recipe.model.source, load_training_tokenizer(recipe.model.source)
    model = new_adapter(load_training_base(base, training), training.lora, recipe.seed)

    def make() -> Any:
        if method == "sft":
            settings = training.sft.model_copy(update={"epochs": 1})
            return sft.make_trainer(model, tokenizer, tokenize(tokenizer, rows, settings.max_length), settings,
                                    seed=recipe.seed, work=work)
        pairs = [Pair(*row, 1.0, "sampled") for row in rows]
        chosen = training.dpo.model_copy(update={"epochs": 1})
        return dpo.make_trainer(model, tokenizer, dpo.pair_rows(tokenizer, pairs, chosen.max_length), chosen, anchor=[],
                                seed=recipe.seed, work=work)

    return make


def plain(recipe: Recipe, method: str, rows: Sequence[Any], work: Path, bfloat16: bool) -> Callable[[], Any]:
    """What makes a trainer as TRL's quick start does."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    from llm_detox.generation.models import device
    from llm_detox.training.lora import load_training_base, load_training_tokenizer

    training, lora = recipe.training, recipe.training.lora
    base, tokenizer = recipe.model.source, load_training_tokenizer(recipe.model.source)
    model = load_training_base(base, training)
    adapter = LoraConfig(r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=lora.target_modules,
                         task_type="CAUSAL_LM")
    section = training.sft if method == "sft" else training.dpo
    # What would go over the network or only decides where it runs; all else is TRL's default.
    on_cpu = device().type == "cpu"
    options = {"output_dir": str(work), "per_device_train_batch_size": section.batch_size, "num_train_epochs": 1,
               "report_to": [], "save_strategy": "no", "disable_tqdm": True, "max_length": section.max_length,
               "use_cpu": on_cpu, **({"bf16": False} if on_cpu and not bfloat16 else {})}

    def make() -> Any:
        if method == "sft":
            return SFTTrainer(model=model, args=SFTConfig(**options), processing_class=tokenizer, peft_config=adapter,
                              train_dataset=Dataset.from_list([{"text": text} for text in rows]))
        pairs = [dict(zip(("prompt", "chosen", "rejected"), row, strict=True)) for row in rows]
        return DPOTrainer(model=model, args=DPOConfig(**options), processing_class=tokenizer, peft_config=adapter,
                          train_dataset=Dataset.from_list(pairs))

    return make


def train(recipe: Recipe, data: Path, method: str, way: str, steps: int) -> dict[str, Any]:
    """One training in this process."""
    from llm_detox.training.progress_callback import quiet_libraries

    rows, tokens = rows_of(recipe, data, method, steps), []  # type: ignore[var-annotated]
    with tempfile.TemporaryDirectory() as folder, quiet_libraries():
        work = Path(folder)
        make = ours(recipe, method, rows, work) if way == "ours" else plain(
            recipe, method, rows, work, bfloat16=way.endswith("bfloat16"))
        started = time.perf_counter()
        trainer = counted(make(), tokens)
        prepared = time.perf_counter() - started
        trainer.train()
        seconds = time.perf_counter() - started
    import torch

    on_gpu = torch.cuda.is_available()
    return {"steps": trainer.state.global_step, "tokens": sum(tokens), "seconds": round(seconds, 2),
            "preparing_seconds": round(prepared, 2), "tokens_per_second": round(sum(tokens) / seconds, 1),
            "memory_gib": (torch.cuda.max_memory_allocated() if on_gpu else peak_memory_bytes()) / 2**30,
            "loss": [row["loss"] for row in trainer.state.log_history if "loss" in row][-1:]}


def in_own_process(options: argparse.Namespace, data: Path, method: str, way: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.train_speed", "--recipe", str(options.recipe), "--data", str(data),
               "--steps", str(options.steps), "--one", method, way]
    for override in options.set:
        command += ["--set", override]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    found: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    say(f"{method}, {way}: {found['tokens_per_second']:.0f} tokens/s, {found['memory_gib']:.2f} GiB")
    return found


def compare(options: argparse.Namespace, data: Path) -> dict[str, Any]:
    """All ways in turns; the medians and what they are to each other."""
    ways = WAYS if options.bfloat16 else WAYS[:2]
    runs: dict[str, dict[str, list[dict[str, Any]]]] = {method: {way: [] for way in ways} for method in options.methods}
    for _ in range(options.rounds):
        for method in options.methods:
            for way in ways:
                runs[method][way].append(in_own_process(options, data, method, way))
    found: dict[str, Any] = {"runs": runs}
    for method in options.methods:
        rate, memory = ({way: statistics.median(run[key] for run in runs[method][way]) for way in ways}
                        for key in ("tokens_per_second", "memory_gib"))
        found[method] = {"tokens_per_second": rate, "memory_gib": memory, "over_trl": rate["ours"] / rate["trl"],
                         "memory_over_trl": memory["ours"] / memory["trl"]}
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=Path("recipes/smollm2-demo.yaml"))
    parser.add_argument("--set", action="append", default=[], help="key=value of the recipe, such as model.source")
    parser.add_argument("--data", type=Path, help="a folder of `llm-detox data`; made anew if not given")
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--bfloat16", action="store_true", help="also TRL with its default precision")
    parser.add_argument("--one", nargs=2, metavar=("METHOD", "WAY"), help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    recipe = load_recipe(options.recipe, options.set)
    if options.one:
        print(json.dumps(train(recipe, options.data, *options.one, options.steps)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        data = options.data or Path(folder) / "data"
        if options.data is None:
            prepare_data(recipe, output=data)
        found = compare(options, data)
    text = json.dumps(found, indent=2)
    print(text)
    if options.output:
        options.output.write_text(text, "utf-8")
    good = all(found[method]["over_trl"] >= 1.5 and found[method]["memory_over_trl"] <= 1 for method in options.methods)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
