"""What all tests share: no network, a cache of their own, and recipes that need no downloads."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

settings.register_profile("busy-machines", deadline=None)
settings.load_profile("busy-machines")

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("LLM_DETOX_SHARED", REPOSITORY.parent / "shared"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that wait for servers stand evenly among those that compute, so that the cores have something to do.

    Among themselves the largest come first: one that is left for the end would keep a single core. Those of the cluster
    keep their order, in which no two that take the same ports meet.
    """
    files: dict[str, Counter[Path]] = {"serving": Counter(), "cluster": Counter(), "": Counter()}
    for item in items:
        folder = item.path.relative_to(REPOSITORY / "tests").parts[0]
        files[folder if folder in files else ""][item.path] += 1
    place = {path: number / len(some) for kind, some in files.items()
             for number, path in enumerate(some if kind == "cluster" else dict(some.most_common()))}
    items.sort(key=lambda item: place[item.path])


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The development data beside the checkout."""
    folder = SHARED / "data"
    if not folder.exists():
        pytest.skip(f"the development data is not here ({folder}); set LLM_DETOX_SHARED")
    return folder


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny Llama and its tokenizer, for tests that only read it."""
    from tests.helpers.tiny import save_tiny_llama

    return save_tiny_llama(tmp_path_factory.mktemp("tiny") / "llama")
