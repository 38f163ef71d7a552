"""Corpora for measuring: so many lines, a share of them toxic, made of ParaDetox."""

from __future__ import annotations

import json
from itertools import cycle
from pathlib import Path

from llm_detox.api import packaged_recipe
from llm_detox.scoring.load import load_scorer


class ParaDetox:
    """Its toxic sentences and people's rewrites of them, by the packaged recipe's scorer and threshold."""

    def __init__(self, path: Path) -> None:
        rows = [line.split("\t") for line in path.read_text("utf-8").split("\n")[1:]]
        recipe = packaged_recipe()
        scorer, threshold = load_scorer(recipe.scoring.training), recipe.detoxify.toxic_threshold
        originals = list(dict.fromkeys(row[0] for row in rows if row[0].strip()))
        rewrites = list(dict.fromkeys(text for row in rows for text in row[1:] if text.strip()))
        self.toxic = [text for text, score in zip(originals, scorer.score(originals), strict=True)
                      if score is not None and score >= threshold]
        self.clean = [text for text, score in zip(rewrites, scorer.score(rewrites), strict=True)
                      if score is not None and score < threshold]

    def corpus(self, path: Path, lines: int, share: float) -> Path:
        """Write JSON lines; the toxic ones lie evenly among the others, and come again where there are too few."""
        toxic, clean = cycle(self.toxic), cycle(self.clean)
        with path.open("w", encoding="utf-8") as file:
            for number in range(lines):
                is_toxic = int((number + 1) * share) > int(number * share)
                record = {"id": number, "text": next(toxic if is_toxic else clean), "source": "paradetox"}
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
        return path
