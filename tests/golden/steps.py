"""The sections that run steps: each calls `llm-detox` in the capture's folder and stores what it wrote."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.conftest import REPOSITORY
from tests.golden.commands import outcome_of, run
from tests.golden.store import Store

_TOKENIZER = ("tokenizer_config.json", "chat_template.jinja", "base.json")
_ALIKE = ("adapter_config.json",)  # a page that hardly differs between adapters


def rehearsal(store: Store) -> None:
    """A whole pipeline, from its data to the model that would be served; without the page, which charts times."""
    store.text("printed.txt", run("recipe", "rehearse", "rehearsed.yaml", "--output", "rehearsed"))
    for folder in sorted(Path("rehearsed").iterdir()):
        store.step(folder.name, folder, left_out=(*_TOKENIZER, "report.json", "report.html"),
                   hashed=(*_ALIKE, "report.md", "model_card.md"))
    report = json.loads(Path("rehearsed/report/report.json").read_text("utf-8"))
    for large in ("reports", "recipe"):
        store.value_digest(f"report/report.json {large}", report.pop(large))
    store.value("report/report", report)


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
        "refusal": ("refusal=I would rather not.", "toxic_threshold=0.37"),
    }
    for name, settings in variants.items():
        texts = "answered" if name == "refusal" else "texts"
        _step(store, name, "detoxify", "--input", f"data/{texts}.jsonl", *_set("detoxify", settings))


def evaluation(store: Store) -> None:
    """Two arms measured whole and in shards, compared and reported."""
    prompts = ("--prompts", "data/prompts.jsonl")
    for arm, model in (("base", "models/llama"), ("dpo", "models/other")):
        _step(store, arm, "evaluate", "--model", model, *prompts, "--clean", "data/clean.jsonl", "--arm", arm)
    for shard in ("0", "1"):
        _step(store, f"shard-{shard}", "evaluate", "--model", "models/llama", *prompts, "--shard", f"{shard}/2",
              left_out=("report.json", "values.json"))
    _step(store, "joined", "evaluate", "--model", "models/llama", *prompts, "--arm", "base",
          *(word for shard in ("0", "1") for word in ("--generations", f"shard-{shard}/generations.jsonl")),
          left_out=("generations.jsonl", "values.json"), hashed=("report.json",))
    store.text("compared.txt", run("evaluate", "compare", "base", "dpo", "--samples", "1000"))
    store.value("compared", json.loads(run("compare", "base", "dpo", "--samples", "1000", "--json")))
    _step(store, "report", "report", "--arm", "base=base", "--arm", "dpo=dpo", code=3,
          left_out=("report.json", "manifest.json"))


def training(store: Store) -> None:
    """SFT in its variants and DPO behind it: the figures of each step, and the weights by their digests."""
    texts = ("--input", "data/texts.jsonl", "--clean", "data/clean.jsonl")
    variants: dict[str, tuple[str, ...]] = {
        "sft-plain": texts,
        "sft-nf4": (*texts, *_set("training", ("quantization=nf4", "lora.dropout=0.1", "sft.max_steps=3"))),
        "sft-packed": (*texts, *_set("training.sft", ("packing=true", "accumulation=2"))),
        "sft-full": (*texts, *_set("training.sft", ("method=full", "max_steps=2"))),
        "sft-answers": ("--input", "data/answered.jsonl")}
    for name, words in variants.items():
        _step(store, name, "sft", *words, left_out=_TOKENIZER, hashed=_ALIKE if name != "sft-plain" else ())
    run("detoxify", "--recipe", "small.yaml", "--input", "data/texts.jsonl", "--output", "rewritten")
    inputs = ("--adapter", "sft-plain", "--records", "rewritten/records.jsonl", "--prompts", "data/prompts.jsonl",
              "--clean", "data/clean.jsonl")
    losses: dict[str, tuple[str, ...]] = {
        "dpo-plain": (), "dpo-anchored": ("likelihood_weight=0.1", "anchor_weight=0.5", "anchor_samples=4"),
        "dpo-ipo": ("loss=ipo", "max_pairs=5", "learning_rate=1e-3")}
    for name, settings in losses.items():
        _step(store, name, "dpo", *inputs, *_set("training.dpo", settings), left_out=_TOKENIZER, hashed=_ALIKE)
    # Processors with AVX-512 BF16 multiply quantised weights in bfloat16: these figures are for the recording machine.
    _step(store, "dpo-nf4", "dpo", *inputs, *_set("training", ("quantization=nf4", "dpo.max_pairs=0")),
          left_out=_TOKENIZER, hashed=(*_ALIKE, "metrics.jsonl", "manifest.json"))
    printed = json.loads(run("convert", "--model", "dpo-plain", "--output", "converted", "--json"))
    store.value("converted/printed", printed)
    store.step("converted", Path("converted"))


def _step(store: Store, name: str, command: str, *words: str, code: int = 0, left_out: Collection[str] = (),
          hashed: Collection[str] = ()) -> None:
    """Run a step of the small recipe with `--json`, and store its folder.

    Raises:
        AssertionError: what it printed is not the result in its manifest.
    """
    lines = run(command, "--recipe", "small.yaml", *words, "--output", name, "--json", code=code).splitlines()
    printed = json.loads(lines[0])  # the second one is an error, where there is one
    manifest = json.loads((Path(name) / "manifest.json").read_text("utf-8"))
    assert printed == {**manifest["result"], "output": name}, f"{name}: {printed}"
    store.step(name, Path(name), left_out=left_out, hashed=hashed)


def _set(section: str, settings: Sequence[str]) -> list[str]:
    """The words that override keys of a recipe's section."""
    return [word for setting in settings for word in ("--set", f"{section}.{setting}")]


def recipe_and_data(store: Store) -> None:
    """What the commands say of a recipe, what they refuse, the data that they prepare, the compiled pipelines."""
    store.text("show.yaml", run("recipe", "show", "small.yaml", "--set", "seed=3"))
    store.digest("recipe show --json", run("recipe", "show", "small.yaml", "--json"))
    for recipe in sorted((REPOSITORY / "recipes").glob("*.yaml")):
        store.digest(f"recipe show {recipe.name}", run("recipe", "show", str(recipe)))
    store.digest("recipe reference", run("recipe", "reference"))
    _step(store, "prepared", "data")
    store.value("refused", {" ".join(words): _refusal(words) for words in _REFUSED})
    _help(store)
    _pipelines(store)


_REFUSED: tuple[tuple[str, ...], ...] = (
    ("recipe", "validate", "nowhere.yaml"),
    ("recipe", "validate", "small.yaml", "--set", "training.sft.nothing=1"),
    ("recipe", "validate", "small.yaml", "--set", "evaluation.continuations=0"),
    ("recipe", "validate", "small.yaml", "--set", "scoring.judging.source=data/labelled.csv"),
    ("sft", "--recipe", "small.yaml", "--input", "nowhere.jsonl", "--output", "refused"),
    ("sft", "--recipe", "small.yaml", "--input", "data/texts.jsonl", "--output", "models"),
    ("detoxify", "--recipe", "small.yaml", "--input", "data/texts.jsonl", "--output", "refused", "--shard", "2/2"),
    ("compare", "models/llama"),
)


def _refusal(words: tuple[str, ...]) -> dict[str, Any]:
    outcome = outcome_of(words)
    return {"code": outcome.code, "stderr": outcome.stderr.splitlines()}


def _help(store: Store) -> None:
    """The help of every command."""
    page = run("--help")
    store.text("help.txt", page)
    lines = page.splitlines()
    for line in lines[lines.index("Commands:") + 1:]:
        if line[2:3].strip():  # deeper ones go on with the line before
            name = line.split()[0]
            store.digest(f"{name} --help", run(name, "--help"))


def _pipelines(store: Store) -> None:
    """What a cluster sees of the compiled pipelines: all but the source of the steps."""
    checked = subprocess.run([sys.executable, "-m", "pipelines", "compile", "--check"], cwd=REPOSITORY, check=False,
                             capture_output=True, text=True)
    store.text("compile-check.txt", f"exit code {checked.returncode}\n{checked.stdout}")
    digests: dict[str, dict[str, str]] = {}
    for path in sorted((REPOSITORY / "pipelines/compiled").glob("*.yaml")):
        parts: dict[str, Any] = {}
        for number, document in enumerate(yaml.safe_load_all(path.read_text("utf-8"))):
            executors = document.get("deploymentSpec", {}).get("executors", {})
            for executor in executors.values():
                executor.get("container", {}).pop("command", None)
            parts |= {f"{number} {name}": part for name, part in document.items() if name != "components"}
            parts |= {f"{number} component {name}": part for name, part in document.get("components", {}).items()}
        digests[path.name] = {name: hashlib.sha256(json.dumps(part, sort_keys=True).encode()).hexdigest()[:16]
                              for name, part in parts.items() if name != "0 sdkVersion"}
    store.value("pipelines", digests)
