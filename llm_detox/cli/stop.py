"""`llm-detox stop`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    deployment: Annotated[Path, typer.Argument(help="The folder that `deploy` wrote.", show_default=False)],
) -> None:
    """End a local deployment."""
    from llm_detox.serve.local import read_state, stop_local

    read_state(deployment)
    ended = stop_local(deployment)
    print(f"ended: {', '.join(ended)}" if ended else "nothing of it was running")
