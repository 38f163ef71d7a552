"""The sections that rehearse whole recipes."""

from __future__ import annotations

import json
from pathlib import Path

from tests.golden.commands import ADAPTER, TOKENIZER, run
from tests.golden.store import Store


def rehearsal(store: Store) -> None:
    """A whole pipeline, from its data to the model that would be served; without the page, which charts times."""
    store.text("printed.txt", run("recipe", "rehearse", "rehearsed.yaml", "--output", "rehearsed"))
    for folder in sorted(Path("rehearsed").iterdir()):
        store.step(folder.name, folder, left_out=(*TOKENIZER, "report.json", "report.html"),
                   hashed=(*ADAPTER, "report.md", "model_card.md", "values.json",
                           *(("manifest.json",) if folder.name == "report" else ())))
    report = json.loads(Path("rehearsed/report/report.json").read_text("utf-8"))
    del report["recipe"]
    store.value_digest("report/report.json reports", report.pop("reports"))
    store.value("report/report", report)


def conversations(store: Store) -> None:
    """A judge of answers trained and asked; requests refused, and three arms measured for it."""
    run("recipe", "rehearse", "judging.yaml", "--output", "judging")
    for step in ("judge", "judged"):
        store.step(f"judging/{step}", Path("judging") / step, left_out=TOKENIZER, hashed=ADAPTER)
    for name in ("train.jsonl", "test.jsonl"):
        store.digest(f"judging/{name}", Path("judging", name).read_text("utf-8"))
    run("recipe", "rehearse", "refusing.yaml", "--output", "refusing")
    for step in ("data", "rewritten", "detoxified", "stop-hate"):
        store.step(f"refusing/{step}", Path("refusing") / step, left_out=TOKENIZER,
                   hashed=("texts.jsonl", "prompts.jsonl", "train_prompts.jsonl", "clean.jsonl", "clean_train.jsonl"))
