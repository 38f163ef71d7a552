"""Models that the steps use: train-experts, train-paraphraser, paraphrase-pairs, train-scorer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llm_detox.cli.common import AsJson, Output, Overrides, RecipeFile, existing, read_recipe, show_outcome


def train_experts(
    recipe: RecipeFile,
    texts: Annotated[Path, typer.Option("--input", help='JSON lines {"text", "toxic": true or false}.')],
    output: Output,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Train the expert and the anti-expert of MaRCo. They learn from labelled text."""
    settings = read_recipe(recipe, overrides, texts)
    from llm_detox.training.rewriters import train_experts as run

    show_outcome(run(settings, texts=texts, output=output), output, as_json)


def train_paraphraser(
    recipe: RecipeFile,
    pairs: Annotated[Path, typer.Option("--input", help="ParaDetox TSV (rude text, rewrites), or JSON lines.")],
    output: Output,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Train a model that rewrites rude text politely. It learns from pairs."""
    settings = read_recipe(recipe, overrides, pairs)
    from llm_detox.training.rewriters import train_paraphraser as run

    show_outcome(run(settings, pairs=pairs, output=output), output, as_json)


def paraphrase_pairs(
    recipe: RecipeFile,
    pairs: Annotated[Path, typer.Option("--input", help="What train-paraphraser reads.")],
    output: Output,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Make preference pairs of a paraphraser's own rewrites. They are for `dpo`."""
    settings = read_recipe(recipe, overrides, pairs)
    from llm_detox.rephrase.paraphrase_pairs import paraphrase_pairs as run

    show_outcome(run(settings, pairs=pairs, output=output), output, as_json)


def train_scorer(
    records: Annotated[Path, typer.Option("--input", help="Records with stored Perspective scores, JSON lines.")],
    output: Output,
    held_out: Annotated[float, typer.Option(
        min=0.05, max=0.5, help="Share of the records that is kept for measuring.")] = 0.2,
    labelled: Annotated[str | None, typer.Option(help="CSV with text and is_offensive, source or path; `none` trains "
                                                      "without it, to score what the kind ngram trained.")] = None,
    encoder: Annotated[str | None, typer.Option(help="Sentence encoder, source or path; the default is the packaged "
                                                     "one.")] = None,
    whole_sentences: Annotated[bool, typer.Option("--whole-sentences", help="Let the encoder read the texts: better, "
                                                  "but only some hundred texts a second.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train a local scorer of Perspective's attributes. Its folder is then the source of the scorer kind attributes."""
    existing(records, "the records file")
    from llm_detox.scoring.train_scorer import train_scorer as run

    result = run(records, output=output, held_out=held_out, labelled=labelled, encoder=encoder,
                          whole_sentences=whole_sentences)
    show_outcome(result, output, as_json)
