"""From a tuned model to the folder that is served."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llm_detox.export.converting import Conversion


def convert(*, model: str, output: Path, card: Path | None = None, oldest_reader: str | None = None) -> Conversion:
    """Write `config.yml` and `artifacts/`: see `llm_detox.export.converting.convert`."""
    from llm_detox.export.converting import convert as run  # numpy and torch load only for a conversion

    return run(model=model, output=output, card=card, oldest_reader=oldest_reader)
