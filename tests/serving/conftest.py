"""The whole topology once for all tests of this folder: store, published model, engine, Caikit runtime."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from llm_detox import processes
from llm_detox.client import TextGenerationClient
from llm_detox.deploy.local import deploy_local, is_serving, read_state, stop_local
from llm_detox.deploy.topology import caikit_python
from llm_detox.errors import DetoxError
from llm_detox.export import convert
from llm_detox.storage import publish
from llm_detox.storage.seaweed import find_weed, seaweed

NAME = "tiny-llama"


@dataclass(frozen=True)
class Stack:
    """A deployment made from the store, and the clients of its protocols."""

    folder: Path
    urls: dict[str, str]

    @property
    def artifacts(self) -> Path:
        return self.folder / "model" / "artifacts"

    def client(self, protocol: str, model_id: str = NAME, timeout: float = 60) -> TextGenerationClient:
        return TextGenerationClient(self.urls[protocol], model_id, timeout=timeout, retries=0)


@pytest.fixture(scope="session")
def stack(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Tests that only ask share it; whoever breaks processes starts an own one."""
    try:
        caikit_python()
        find_weed()
    except DetoxError as error:
        pytest.skip(str(error))
    root = tmp_path_factory.mktemp("stack")
    convert(model=str(tiny_llama), output=root / "converted")
    before = dict(os.environ)
    try:
        with seaweed(root / "store", buckets=["models"]) as store:
            os.environ.update(store.env())
            address = publish(root / "converted", "s3://models/tiny")["address"]
            result = deploy_local(address, name=NAME, output=root / "deployment")
    finally:
        os.environ.clear()
        os.environ.update(before)
    yield Stack(root / "deployment", result["urls"])
    running = [processes.Process(**one) for one in read_state(root / "deployment")["processes"]]
    assert is_serving(root / "deployment"), processes.last_lines(running[0].log)
    assert stop_local(root / "deployment") == ["caikit", "engine"]
    assert not any(processes.is_running(one) for one in running)
    assert stop_local(root / "deployment") == []
