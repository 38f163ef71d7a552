"""A whole corpus: clean-corpus."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from llm_detox.cli.common import AsJson, OptionalRecipe, Overrides, read_optional_recipe, show_outcome


def clean_corpus(
    source: Annotated[str, typer.Argument(metavar="IN", show_default=False, help="A file, a folder, a pattern in "
                                          "quotes, or s3://bucket/prefix.")],
    output: Annotated[Path, typer.Argument(metavar="OUT", show_default=False,
                                           help="The folder to write; it must not exist.")],
    recipe: OptionalRecipe = None,
    text: Annotated[str, typer.Option(help="The column that holds the text.")] = "text",
    workers: Annotated[int | None, typer.Option(
        min=1, help="Processes of one thread each; by default one for each core.")] = None,
    deduplicate: Annotated[bool, typer.Option("--deduplicate", help="Leave out lines whose text came before.")] = False,
    sample: Annotated[int | None, typer.Option(
        "--dry-run", metavar="N", min=1, help="Try N lines, and say what the whole will take. Writes nothing.")] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Write a corpus again without its toxic text. It may have any size; it continues where it stopped."""
    settings = read_optional_recipe(recipe, overrides)
    from llm_detox.api import packaged_recipe
    from llm_detox.corpus.clean import CorpusSettings
    from llm_detox.corpus.clean import clean_corpus as run

    settings = settings or packaged_recipe()
    corpus = CorpusSettings(text, deduplicate, workers or len(os.sched_getaffinity(0)))
    if sample is None:
        show_outcome(run(settings, source, output, corpus), output, as_json)
        return
    from llm_detox.corpus.dry_run import dry_run

    show_outcome(dry_run(settings, source, corpus, sample), None, as_json)
