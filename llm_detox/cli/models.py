"""Models that were published or converted: `models list|rollback|prune|fetch`, `export verify`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from llm_detox.cli.common import AsJson, existing, show_outcome
from llm_detox.progress import visible_json

app = typer.Typer(no_args_is_help=True, help="The versions of a published model.")
exports = typer.Typer(no_args_is_help=True, help="Folders that `convert` wrote.")
Url = Annotated[str, typer.Argument(help="Where it was published to: s3://bucket/prefix", show_default=False)]


@app.command("list")
def list_versions(url: Url, as_json: AsJson = False) -> None:
    """Show all versions, newest first; the current one has a star."""
    from llm_detox.storage.publishing import versions

    listed = versions(url)
    if as_json:
        print(visible_json({"versions": [asdict(one) for one in listed]}))
        return
    for one in listed:
        print(f"{'*' if one.current else ' '} {one.digest}  {one.published}  {one.bytes / 2**20:8.1f} MiB")


@app.command()
def rollback(url: Url, digest: Annotated[str | None, typer.Argument(
        help="The version to go back to; without it, the one before the current one.")] = None) -> None:
    """Make an older version current."""
    from llm_detox.storage.publishing import rollback as run

    print(run(url, digest).address)


@app.command()
def prune(url: Url, keep: Annotated[int, typer.Option(min=1, help="Newest versions to keep.")] = 3) -> None:
    """Remove old versions; the current one stays."""
    from llm_detox.storage.publishing import prune as run

    for digest in run(url, keep):
        print(f"removed {digest}")


@app.command()
def fetch(url: Url, to: Annotated[Path, typer.Argument(help="The folder to make.")], as_json: AsJson = False) -> None:
    """Fetch a published model, verified by its checksums."""
    from llm_detox.storage import fetch_model

    model = fetch_model(url, to)
    print(visible_json(asdict(model)) if as_json else f"{model.address} is in {to}")


@exports.callback()
def _group() -> None:
    """Keeps the name of the only command."""


@exports.command()
def verify(
    folder: Annotated[Path, typer.Argument(help="What `convert` wrote, or a Hugging Face folder.", show_default=False)],
    python: Annotated[list[str] | None, typer.Option(
        help="An interpreter that must read the same model, such as the Caikit environment's. Repeatable.")] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="A text to continue. Repeatable.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to generate for each text.")] = 16,
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
