"""A pipeline that is placed the same way twice is compiled once for all tests of a process: it takes seconds."""

from __future__ import annotations

import inspect
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines import compile as compiling
from pipelines.placement import Placement


@pytest.fixture(scope="session", autouse=True)
def _compiled_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    plain, home = compiling.compile_one, tmp_path_factory.mktemp("compiled")
    # kfp asks for the name of its caller's caller, for each call of a task, and gets the source text of every frame
    # read along: with pytest's deep stacks and torch's modules that makes one compilation take half a minute.
    frames = inspect.stack
    known: dict[tuple[str, str], Path] = {}

    def compile_one(name: str, folder: Path, placement: Placement) -> Path:
        key = (name, placement.model_dump_json())
        if key not in known:
            with pytest.MonkeyPatch.context() as bare:
                bare.setattr(inspect, "stack", lambda context=0: frames(0))
                known[key] = plain(name, Path(tempfile.mkdtemp(dir=home)), placement)
        return Path(shutil.copy(known[key], folder))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiling, "compile_one", compile_one)
        yield
