"""`llm-detox train-scorer`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llm_detox.cli.common import AsJson, Output, existing, show_outcome


def command(
    records: Annotated[Path, typer.Option("--input", help="Records with stored Perspective scores, JSON lines.")],
    output: Output,
    held_out: Annotated[float, typer.Option(min=0.05, max=0.5, help="Share of the records that only measures.")] = 0.2,
    labelled: Annotated[str | None, typer.Option(help="CSV with text and is_offensive, source or path; none: without, "
                                                      "to judge what the scorer kind ngram trained.")] = None,
    encoder: Annotated[str | None, typer.Option(help="Sentence encoder, source or path; the default is the packaged "
                                                     "one.")] = None,
    whole_sentences: Annotated[bool, typer.Option("--whole-sentences", help="Let the encoder read the texts: better, "
                                                  "but only some hundred texts a second.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train a local scorer of Perspective's attributes. Its folder is then the source of the scorer kind ngram."""
    existing(records, "the records file")
    from llm_detox.scoring.train_scorer import train_scorer

    result = train_scorer(records, output=output, held_out=held_out, labelled=labelled, encoder=encoder,
                          whole_sentences=whole_sentences)
    show_outcome(result, output, as_json)
