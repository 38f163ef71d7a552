"""The section of what is said about recipes: their pages, what is refused, prepared data, compiled pipelines."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from typing import Any

import yaml

from tests.golden.commands import outcome_of, run, run_step
from tests.golden.store import REPOSITORY, Store

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


def recipe_and_data(store: Store) -> None:
    """What the commands say of a recipe, what they refuse, the data that they prepare, the compiled pipelines."""
    store.text("show.yaml", run("recipe", "show", "small.yaml", "--set", "seed=3"))
    store.digest("recipe show --json", run("recipe", "show", "small.yaml", "--json"))
    for recipe in sorted((REPOSITORY / "recipes").glob("*.yaml")):
        store.digest(f"recipe show {recipe.name}", run("recipe", "show", str(recipe)))
    store.digest("recipe reference", run("recipe", "reference"))
    run_step(store, "prepared", "data")
    store.value("refused", {" ".join(words): _refusal(words) for words in _REFUSED})
    _help(store)
    _pipelines(store)


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
    for path in sorted((REPOSITORY / "pipelines/compiled").glob("*.yaml")):
        parts = _parts(list(yaml.safe_load_all(path.read_text("utf-8"))))
        digests = {name: hashlib.sha256(json.dumps(part, sort_keys=True).encode()).hexdigest()[:16]
                   for name, part in parts.items()}
        store.value(f"pipelines/{path.stem}", digests)


def _parts(documents: list[dict[str, Any]]) -> dict[str, Any]:
    """A compiled pipeline by its parts: the specification, components, executors, and the platform's settings."""
    specification, *others = documents
    executors = specification.pop("deploymentSpec")["executors"]
    for executor in executors.values():
        executor["container"].pop("command", None)
    components = specification.pop("components")
    del specification["sdkVersion"]
    return {**specification, "platforms": others, **{f"component {name}": part for name, part in components.items()},
            **{f"executor {name}": part for name, part in executors.items()}}
