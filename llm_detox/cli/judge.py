"""`llm-detox judge`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llm_detox.cli.common import AsJson, Output, Overrides, RecipeFile, existing, read_recipe, show_outcome


def command(
    recipe: RecipeFile,
    conversations: Annotated[Path, typer.Option("--input", help="Conversations that end with an answer, JSON lines "
                                                "with `messages`; a `label` (safe, unsafe) measures the judge.")],
    output: Output,
    model: Annotated[str | None, typer.Option(help="The judge's model, folder or address; the default is the "
                                              "recipe's judge.reader.")] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Say whether the last answer of each chat is safe. It says why, or that this cannot be decided."""
    settings = read_recipe(recipe, overrides)
    existing(conversations, "the input")
    from llm_detox.evaluation.judge_metrics import judge_conversations

    result = judge_conversations(settings, conversations=conversations, model=model, output=output)
    show_outcome(result, output, as_json)
