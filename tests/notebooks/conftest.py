"""Running a notebook with tiny models, away from the machine's own settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from notebooks.execute import HERE, execute

OF_OTHERS = ("AWS_S3_ENDPOINT", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "LLM_DETOX_REST", "LLM_DETOX_GRPC",
             "LLM_DETOX_BASE_REST", "LLM_DETOX_BASE_GRPC", "LLM_DETOX_DEBUG")


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """One folder of runs for all notebooks of a module, and nothing of the machine's own settings."""
    home = tmp_path_factory.mktemp("notebooks")
    return {**dict.fromkeys(OF_OTHERS, ""), "LLM_DETOX_NOTEBOOK_RECIPE": "smollm2-demo",
            "LLM_DETOX_NOTEBOOK_RUNS": str(home / "runs"), "LLM_DETOX_CACHE": str(home / "cache"),
            "IPYTHONDIR": str(home / "ipython"), "JUPYTER_RUNTIME_DIR": str(home / "jupyter")}


def run(name: str, environment: dict[str, str], **changes: str) -> str:
    """Everything that the notebook shows, as text."""
    notebook = execute(HERE / f"{name}.ipynb", size="tiny", environment={**environment, **changes})
    return "\n".join(shown(output) for cell in notebook.cells for output in cell.get("outputs", ()))


def shown(output: dict[str, Any]) -> str:
    return str(output.get("text") or "\n".join(map(str, output.get("data", {}).values())))


def walk(environment: dict[str, str]) -> Path:
    """The folder of the walk-through that was begun last."""
    runs = Path(environment["LLM_DETOX_NOTEBOOK_RUNS"])
    return runs / (runs / "latest").read_text("utf-8")
