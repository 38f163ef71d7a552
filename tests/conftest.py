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
_MANY = 1000  # a test whose pods run takes as long as many others


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that wait for servers stand evenly among those that compute, so that the cores have something to do.

    Among themselves those whose pods run come first, then the largest: one that is left for the end would keep a single
    core.
    """
    files: dict[str, Counter[Path]] = {"serving": Counter(), "cluster": Counter(), "": Counter()}
    for item in items:
        folder = item.path.relative_to(REPOSITORY / "tests").parts[0]
        runs_pods = "published" in getattr(item, "fixturenames", ())
        files[folder if folder in files else ""][item.path] += _MANY if runs_pods else 1
    place = {path: number / len(some) for some in files.values()
             for number, (path, _) in enumerate(some.most_common())}
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
