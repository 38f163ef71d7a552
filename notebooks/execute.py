"""Run the notebooks in order and keep their outputs, as small and as free of this machine as they can be.

    python -m notebooks.execute                       # all, at the size small: minutes
    python -m notebooks.execute 4-inference_request   # one; the others' results must be there

A notebook notes the digest of the code that its outputs belong to; a test compares them.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

HERE = Path(__file__).resolve().parent
NOTEBOOKS = sorted(HERE.glob("[0-9]-*.ipynb"))
NOTE = "llm_detox"
_CELL_SECONDS = 3600


def execute(path: Path, *, size: str, environment: dict[str, str] | None = None) -> Any:
    """Run a notebook from top to bottom in a kernel of this Python, in the folder of the notebooks.

    Args:
        path: the notebook; it is not written.
        size: see `walkthrough.recipe_at`.
        environment: more variables for the kernel.

    Returns:
        the notebook with its outputs.

    Raises:
        CellExecutionError: a cell failed.
    """
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=_CELL_SECONDS, kernel_name="python3", record_timing=False,
                            coalesce_streams=True, resources={"metadata": {"path": str(HERE)}})
    return client.execute(env={**os.environ, "LLM_DETOX_NOTEBOOK_SIZE": size, **(environment or {})})


def sources_digest(notebook: Any) -> str:
    """Changes with the source of any cell of code."""
    sources = "\0".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    return hashlib.sha256(sources.encode()).hexdigest()[:16]


def cleaned(notebook: Any, size: str) -> Any:
    """The notebook with a note on what its outputs show, and without what only this machine has."""
    for cell in notebook.cells:
        cell.metadata = {}
        for output in cell.get("outputs", ()):
            if "metadata" in output:
                output.metadata = {}
            for text, place in _texts(output):
                place[text] = _without_places(place[text])
    notebook.metadata = {"kernelspec": notebook.metadata["kernelspec"], "language_info": {"name": "python"},
                         NOTE: {"size": size, "sources": sources_digest(notebook)}}
    return notebook


def _texts(output: Any) -> list[tuple[str, Any]]:
    found = [(kind, output["data"]) for kind in output.get("data", {}) if isinstance(output["data"][kind], str)]
    return found + ([("text", output)] if "text" in output else [])


def _without_places(text: str) -> str:
    for folder, name in ((HERE.parent, "."), (Path(tempfile.gettempdir()), "TMP"), (Path.home(), "~")):
        text = re.sub(rf"{re.escape(str(folder))}(?=/|\b)", name, text)
    return text


def main(names: list[str]) -> int:
    """Execute the named notebooks, or all, and write them back; 1 where a cell failed."""
    size = os.environ.get("LLM_DETOX_NOTEBOOK_SIZE", "small")
    for path in [one for one in NOTEBOOKS if not names or one.stem in names]:
        print(f"{path.name} at the size {size}", file=sys.stderr, flush=True)
        try:
            nbformat.write(cleaned(execute(path, size=size), size), path)
        except CellExecutionError as error:
            print(error, file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
