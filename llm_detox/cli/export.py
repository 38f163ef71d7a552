"""`llm-detox export verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llm_detox.cli.common import AsJson, existing, show_outcome

app = typer.Typer(no_args_is_help=True, help="Folders that `convert` wrote.")


@app.callback()
def _group() -> None:
    """Keeps the name of the only command."""


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(help="What `convert` wrote, or a Hugging Face folder.", show_default=False)],
    python: Annotated[list[str] | None, typer.Option(
        help="An interpreter that must read the same model, such as the Caikit environment's. Repeatable.")] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="A text to continue. Repeatable.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="For each text.")] = 16,
    as_json: AsJson = False,
) -> None:
    """Load a model here and in other interpreters. The greedy tokens and the chat template must be the same."""
    from llm_detox.export.verify import PROMPTS
    from llm_detox.export.verify import verify as run

    existing(folder, "the folder")
    result = run(folder, python or (), prompts=prompt or PROMPTS, max_new_tokens=max_new_tokens)
    shown = {name: f"transformers {one['transformers']}, tokenizers {one['tokenizers']}: the same tokens"
             for name, one in result["readers"].items()}
    show_outcome(result if as_json else shown, None, as_json)
