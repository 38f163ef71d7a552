"""`llm-detox serve s3://...`: from a real store, and with the pointer, while requests go on."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llm_detox import processes
from llm_detox.client import GenerationError, TextGenerationClient
from llm_detox.errors import DetoxError
from llm_detox.export import convert
from llm_detox.runs.folders import MANIFEST
from llm_detox.serve.local_stack import caikit_python
from llm_detox.storage import publish
from llm_detox.storage.publishing import rollback
from llm_detox.storage.seaweed import Seaweed, find_weed
from tests.helpers.tiny import save_tiny_llama
from tests.serving.conftest import greedy
from tests.serving.running import wait_for

NAME, PROMPT, TOKENS = "followed", "the quick brown fox", 24
URL = "s3://models/followed"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seaweed]:
    try:
        caikit_python()
        find_weed()
    except DetoxError as error:
        pytest.skip(str(error))
    found = Seaweed.start(tmp_path_factory.mktemp("weed"), buckets=["models"])
    yield found
    found.stop()


@pytest.fixture
def environment(store: Seaweed, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    for name, value in store.env().items():
        monkeypatch.setenv(name, value)
    return dict(os.environ)


def _published(seed: int, root: Path) -> tuple[str, str]:
    """The digest of a published tiny model, and its greedy text."""
    save_tiny_llama(root / f"model-{seed}", seed=seed)
    convert(model=str(root / f"model-{seed}"), output=root / f"converted-{seed}")
    [(_, text)] = greedy(root / f"converted-{seed}" / "artifacts", [PROMPT], new_tokens=TOKENS).values()
    return publish(root / f"converted-{seed}", URL).digest, text


class Asking(threading.Thread):
    """Asks again and again, whole and streamed; keeps the answers in order, and every failure."""

    def __init__(self, url: str, over: threading.Event) -> None:
        super().__init__(daemon=True)
        self.url, self.over = url, over
        self.texts: list[str] = []
        self.failures: list[str] = []

    def run(self) -> None:
        with TextGenerationClient(self.url, NAME, timeout=60, retries=0) as client:
            for number in itertools.count():
                if self.over.is_set():
                    return
                try:
                    if number % 2:
                        self.texts.append(client.generate(PROMPT, max_new_tokens=TOKENS).text)
                    else:
                        self.texts.append("".join(one.text for one in client.stream(PROMPT, max_new_tokens=TOKENS)))
                except GenerationError as error:
                    self.failures.append(str(error))


def _answered(asking: list[Asking], condition: Callable[[Asking, int], bool], counts: list[int] | None = None) -> None:
    """Waits until the condition holds for each; a failed request ends the wait at once."""
    def every_one() -> bool:
        assert [failure for one in asking for failure in one.failures] == []
        return all(condition(one, count) for one, count in zip(asking, counts or [0] * len(asking), strict=True))

    wait_for(every_one, 120)


def _said(log: Path, words: str) -> bool:
    return words in log.read_text("utf-8", errors="replace")


@pytest.mark.heavy
def test_the_pointer_is_followed_and_no_request_is_lost(environment: dict[str, str], tmp_path: Path) -> None:
    oldest, first = _published(1, tmp_path)
    log, over = tmp_path / "log", threading.Event()
    asking: list[Asking] = []
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [sys.executable, "-m", "llm_detox.cli", "serve", URL, "--name", NAME, "--json", "--rest-port", "0",
             "--grpc-port", "0"], env=environment, stdout=subprocess.PIPE, stderr=sink, text=True)
    try:
        assert process.stdout is not None
        urls: dict[str, Any] = json.loads(process.stdout.readline() or "{}")
        assert urls, log.read_text()
        asking = [Asking(urls[protocol], over) for protocol in ("rest", "grpc", "fmaas") for _ in range(2)]
        for one in asking:
            one.start()
        _answered(asking, lambda one, _: len(one.texts) > 2)
        _, second = _published(2, tmp_path)
        _answered(asking, lambda one, _: one.texts[-1] == second)
        (tmp_path / "converted-1" / "artifacts" / "model.safetensors").write_bytes(b"broken")
        (tmp_path / "converted-1" / MANIFEST).unlink()  # else nobody could publish what the step did not write
        publish(tmp_path / "converted-1", URL)
        wait_for(lambda: _said(log, "the new version does not load"), 90)
        counts = [len(one.texts) for one in asking]
        _answered(asking, lambda one, count: len(one.texts) > count + 2, counts)
        rollback(URL, oldest)
        _answered(asking, lambda one, _: one.texts[-1] == first)
    finally:
        over.set()
        for one in asking:
            one.join(60)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, processes.last_lines(log, 30)
    for one in asking:
        assert one.failures == []
        assert [text for text, _ in itertools.groupby(one.texts)] == [first, second, first]
