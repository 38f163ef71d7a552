"""Compiling the pipelines to the YAML that a pipeline server takes."""

from pathlib import Path

from kfp import compiler

from pipelines.cluster import detox_and_serve, evaluate_only, promote, train_judge
from pipelines.placement import Placement, placed

COMPILED = Path(__file__).parent / "compiled"
PIPELINES = {pipeline.name: pipeline for pipeline in (detox_and_serve, evaluate_only, train_judge, promote)}


def compile_all(folder: Path = COMPILED, placement: Placement | None = None) -> list[Path]:
    """Write every pipeline's YAML, with its steps in their place, into the folder; returns the files."""
    placement = placement or Placement.load()
    folder.mkdir(parents=True, exist_ok=True)
    return [compile_one(name, folder, placement) for name in PIPELINES]


def compile_one(name: str, folder: Path, placement: Placement) -> Path:
    """Write one pipeline's YAML, `NAME.yaml`, into the folder."""
    path = folder / f"{name}.yaml"
    compiler.Compiler().compile(placed(PIPELINES[name], placement), package_path=str(path))
    return path
