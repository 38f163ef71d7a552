"""A recipe for somebody's own table: its texts are counted, the sizes fit the machine, and the time is foretold."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from llm_detox.data.prepare import usable_texts
from llm_detox.data.records import Record
from llm_detox.errors import DetoxError, UsageError
from llm_detox.processes import matmul_gflops
from llm_detox.recipe.data import BudgetSection, TextData
from llm_detox.recipe.files import PACKAGED_RECIPE, load_recipe, parse_yaml
from llm_detox.scoring.load import load_scorer

# Of the packaged recipe's whole run at its budget.reference_gflops, reckoned from one run (docs/measured.md).
_RUN_SECONDS = 1540.0
_SECONDS_A_TEXT = 0.8  # three adapters learn it, and it may be rewritten
_MOST_TEXT_SECONDS = 1500.0
_SMALLEST_SCALE = BudgetSection.model_fields["smallest_scale"].default
# As many as a slow machine gets of the packaged recipe's: the fewest with which a run has passed its gate.
_FEWEST_TOXIC = 60
_SCORED = 2000  # a share of toxic texts is known to one or two points from so many
_HEADER = """# Made by `llm-detox quickstart` from {source}.
#   {count} texts, about {toxic} of them toxic. A run takes some {minutes} minutes at {gflops:.0f} GFLOP/s, as here.
#   python -m pipelines run --recipe {recipe}
# Model, prompts, clean passages and scorers are Python packages: name your own in their place. Every key with its
# default and meaning: docs/configuration.md, or `llm-detox recipe reference`.
"""


@dataclass(frozen=True)
class Quickstart:
    """A recipe that was written, and what its run will be.

    Attributes:
        recipe: the file.
        usable: how many texts of the table can be used: long and short enough, each once, with one label.
        usable_toxic: how many of them are toxic; where the table has no labels, as the training scorer's sample has it.
        count, toxic: how many of them the recipe takes.
        minutes: that a run will take on this machine.
        gflops: of this machine.
    """

    recipe: Path
    usable: int
    usable_toxic: int
    count: int
    toxic: int
    minutes: int
    gflops: float


def quickstart(table: Path, *, text: str, label: str | None, recipe: Path) -> Quickstart:
    """Write a recipe that makes the packaged model less toxic with the texts of a table.

    Args:
        table: a file or folder of tables.
        text, label: its columns; without labels the recipe's training scorer decides which texts are toxic.
        recipe: the file to write, which must not exist.

    Raises:
        UsageError: the recipe exists.
        DetoxError: a column is missing, or there are too few toxic texts to learn from.
    """
    if recipe.exists():
        raise UsageError("the recipe exists already", place=str(recipe), remedy="choose another --output")
    values = parse_yaml(PACKAGED_RECIPE.read_text("utf-8"), str(PACKAGED_RECIPE))
    texts = {"source": str(table), "text_column": text, "label_column": label}
    by_key, labels = usable_texts(TextData.model_validate(texts))
    usable = [record for key, record in by_key.items() if key not in labels.contradictory]
    usable_toxic = _toxic_by_label(usable) if label else _toxic_by_scorer(usable)
    if usable_toxic < _FEWEST_TOXIC:
        raise DetoxError(
            f"{usable_toxic} of {len(usable)} usable texts are toxic, {_FEWEST_TOXIC - usable_toxic} too few: at least "
            f"{_FEWEST_TOXIC} are needed", place=str(table), remedy=_remedy(label))
    gflops = matmul_gflops()
    slowness = values["budget"]["reference_gflops"] / gflops
    scale = min(1.0, max(_SMALLEST_SCALE, 1 / slowness))
    most = int(_MOST_TEXT_SECONDS / _SECONDS_A_TEXT / slowness)
    count, toxic = _sizes(len(usable), usable_toxic, most, chosen=label is not None)
    minutes = round((_RUN_SECONDS * scale + count * _SECONDS_A_TEXT) * slowness / 60)
    values |= {"name": _name(recipe.stem), "description": f"SmolLM2-135M made less toxic with {table.name}",
               "budget": {"scale": 1.0}}
    for section, size in (("prompts", "evaluation_count"), ("prompts", "training_count"), ("clean", "count"),
                          ("clean", "training_count")):
        values["data"][section][size] = round(values["data"][section][size] * scale)
    values["data"]["texts"] = {**texts, "count": count, **({"toxic_share": round(toxic / count, 3)} if label else {})}
    _write(recipe, values, _HEADER.format(source=table, count=count, toxic=toxic, minutes=minutes, gflops=gflops,
                                          recipe=recipe))
    return Quickstart(recipe, len(usable), usable_toxic, count, toxic, minutes, gflops)


def _sizes(usable: int, usable_toxic: int, most: int, *, chosen: bool) -> tuple[int, int]:
    """How many texts the recipe takes, and how many of them are toxic.

    Args:
        most: that fit into the time, unless too few of them were toxic.
        chosen: whether labels let the recipe choose: half toxic, half not. Else it takes them as they come.
    """
    if chosen:
        toxic = min(usable_toxic, max(most // 2, _FEWEST_TOXIC))
        return toxic + min(usable - usable_toxic, toxic), toxic
    count = min(usable, max(most, math.ceil(_FEWEST_TOXIC * usable / usable_toxic)))
    return count, round(count * usable_toxic / usable)


def _toxic_by_label(usable: list[Record]) -> int:
    return sum(bool(record["toxic"]) for record in usable)


def _toxic_by_scorer(usable: list[Record]) -> int:
    """How many of the texts the training scorer would have rewritten, from its scores of a sample."""
    recipe = load_recipe(PACKAGED_RECIPE)
    sample = [record["text"] for record in islice(usable, 0, None, max(1, len(usable) // _SCORED))]
    scores = load_scorer(recipe.scoring.training).score(sample)
    toxic = sum(score is not None and score >= recipe.detoxify.toxic_threshold for score in scores)
    return round(toxic * len(usable) / len(sample))


def _remedy(label: str | None) -> str:
    longest, shortest = (TextData.model_fields[name].default for name in ("max_chars", "min_chars"))
    asks = f"texts of {shortest} to {longest} characters are used, each once"
    return f"{asks}; the label is 1 for toxic texts" if label else f"{asks}; name labels with --label, if there are any"


def _name(stem: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", stem.lower()).strip("-") or "quickstart"


def _write(recipe: Path, values: Mapping[str, Any], header: str) -> None:
    text = header + yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)
    recipe.parent.mkdir(parents=True, exist_ok=True)
    new = recipe.with_name(f".{recipe.name}.part")
    try:
        new.write_text(text, "utf-8")
        load_recipe(new)
        new.rename(recipe)
    finally:
        new.unlink(missing_ok=True)
