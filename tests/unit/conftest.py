"""A real S3 store for the storage tests, and a proxy in front of it that fails as told."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from llm_detox.errors import DetoxError
from llm_detox.storage import patience
from llm_detox.storage.seaweed import Seaweed, find_weed
from tests.helpers.faultproxy import Proxy, fault_proxy

PART = 5 * 2**20


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seaweed]:
    try:
        find_weed()
    except DetoxError as error:
        pytest.skip(str(error))
    store = Seaweed.start(tmp_path_factory.mktemp("weed"), buckets=["models"])
    yield store
    assert store.stop()


@pytest.fixture
def env(store: Seaweed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Seaweed:
    """The store, by the environment."""
    for name, value in store.env().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LLM_DETOX_CACHE", str(tmp_path / "cache"))
    return store


@pytest.fixture
def proxy(env: Seaweed, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy on the way to the store; files go in parts of five mebibytes."""
    monkeypatch.setattr(patience, "ATTEMPTS", 3)
    for module in ("publishing", "fetch"):
        monkeypatch.setattr(f"llm_detox.storage.{module}.part_size", lambda largest: PART)
    with fault_proxy(env.endpoint) as proxy:
        monkeypatch.setenv("AWS_S3_ENDPOINT", proxy.url)
        yield proxy


@pytest.fixture
def quick_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses between attempts grow; their length is not what is tested here."""
    for module in ("patience", "pointer", "transfer"):
        monkeypatch.setattr(f"llm_detox.storage.{module}.pause_seconds", lambda attempt: 0.01)


@pytest.fixture
def url(env: Seaweed, request: pytest.FixtureRequest) -> str:
    """A place of the test's own."""
    return f"s3://models/{hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:12]}"
