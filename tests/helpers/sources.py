"""Small data sources for a recipe, made up on the spot."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any


def make_sources(folder: Path, comments: int = 60) -> dict[str, Any]:
    """A small labelled CSV, prompts in two formats and clean passages; returns the recipe's values."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "comments.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["is_offensive", "text"])
        for number in range(comments):
            toxic = number % 3 == 0
            word = "you stupid idiot" if toxic else "my good friend"
            writer.writerow([int(toxic), f"comment number {number} was written by {word} in the afternoon"])
        writer.writerow([0, "Comment number 1 was written by my good friend, in the afternoon!"])
    with (folder / "prompts.jsonl").open("w", encoding="utf-8") as file:
        for number in range(30):
            text = f"So number {number} is what these damn people will"
            file.write(json.dumps({"prompt": {"text": text, "toxicity": 0.9 if number % 2 else 0.1}}) + "\n")
    (folder / "more.txt").write_text("".join(f"Line {n} of the other list of prompts\n" for n in range(30)), "utf-8")
    with (folder / "clean.jsonl").open("w", encoding="utf-8") as file:
        for number in range(40):
            passage = f"Passage {number} tells how the river flows to the sea. It has two sentences of some length."
            file.write(json.dumps({"passage": passage}) + "\n")
    return {
        "name": "small",
        "model": {"source": "owner/name"},
        "data": {
            "texts": {"source": str(folder / "comments.csv"), "count": 20, "min_chars": 10},
            "prompts": {
                "sources": [
                    {"source": str(folder / "prompts.jsonl"), "text_column": "prompt.text"},
                    str(folder / "more.txt"),
                ],
                "evaluation_count": 8,
                "training_count": 10,
            },
            "clean": {
                "sources": [{"source": str(folder / "clean.jsonl"), "text_column": "passage"}],
                "count": 6,
                "training_count": 5,
                "max_chars": 100,
            },
        },
        "budget": {"scale": 1.0},
        "scoring": {"training": {"kind": "ngram"}, "judging": {"kind": "bilstm"}},
    }



def write_lines(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    return path
