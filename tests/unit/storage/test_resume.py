"""An interrupted transfer goes on where it stopped, part by part, and mixes nothing with what was there before."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from llm_detox.errors import DetoxError
from llm_detox.storage import fetch_model, publish
from llm_detox.storage.publishing import prune
from llm_detox.storage.s3 import Place, connect
from tests.helpers.faultproxy import Fault, Proxy, Request, Reset
from tests.helpers.folders import same

MIB = 2**20
PARTS = 4

pytestmark = pytest.mark.usefixtures("quick_pauses")


def make_model(folder: Path, seed: int = 0) -> Path:
    """One file of four parts, and a small one."""
    (folder / "artifacts").mkdir(parents=True)
    (folder / "config.yml").write_text(f"name: {seed}\n")
    (folder / "artifacts" / "model.safetensors").write_bytes(random.Random(seed).randbytes(PARTS * 5 * MIB - 100))
    return folder


def after(count: int, of: Callable[[Request], bool]) -> Callable[[Request], Fault]:
    """From the request after so many of a kind on, they all fail."""
    seen: list[Request] = []

    def decide(request: Request) -> Fault:
        if not of(request):
            return None
        seen.append(request)
        return Reset() if len(seen) > count else None

    return decide


def is_part_sent(request: Request) -> bool:
    return request.method == "PUT" and "partNumber=" in request.path


def is_part_fetched(request: Request) -> bool:
    return request.method == "GET" and "model.safetensors" in request.path


def of_kind(proxy: Proxy, kind: Callable[[Request], bool], since: int) -> int:
    return sum(map(kind, proxy.seen[since:]))


def test_a_broken_upload_sends_only_the_parts_that_are_missing(proxy: Proxy, url: str, tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    proxy.decide = after(2, is_part_sent)
    with pytest.raises(DetoxError):
        publish(model, url)
    proxy.decide = lambda request: None
    since = len(proxy.seen)
    publish(model, url)
    assert of_kind(proxy, is_part_sent, since) == PARTS - 2
    fetch_model(url, tmp_path / "back")
    assert same(model, tmp_path / "back")


def test_a_broken_fetch_brings_only_the_parts_that_are_missing(
    proxy: Proxy, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_model(tmp_path / "model")
    publish(model, url)
    proxy.decide = after(2, is_part_fetched)
    with pytest.raises(DetoxError):
        fetch_model(url, tmp_path / "back")
    assert not (tmp_path / "back").exists()
    proxy.decide = lambda request: None
    since = len(proxy.seen)
    fetch_model(url, tmp_path / "back")
    assert of_kind(proxy, is_part_fetched, since) == PARTS - 2
    assert "1 in part" in capsys.readouterr().err
    assert same(model, tmp_path / "back")
    assert sorted(path.name for path in (tmp_path / "back").rglob("*") if path.is_file()) == [
        "checksums.json", "config.yml", "model.safetensors"]


def test_a_killed_upload_leaves_its_parts_to_the_next_one(proxy: Proxy, url: str, tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    proxy.decide = lambda request: (time.sleep(0.15 * is_part_sent(request)), None)[1]
    code = ("import sys; from pathlib import Path; from llm_detox.storage import publish, publishing, transfer\n"
            "transfer.THREADS = 1; publishing.part_size = lambda largest: 5 * 2**20\n"
            "publish(Path(sys.argv[1]), sys.argv[2])")
    process = subprocess.Popen([sys.executable, "-c", code, str(model), url], env=dict(os.environ),
                               stderr=subprocess.DEVNULL)
    while of_kind(proxy, is_part_sent, 0) < 3:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(0.5)
    proxy.decide = lambda request: None
    since = len(proxy.seen)
    publish(model, url)
    assert 1 <= of_kind(proxy, is_part_sent, since) <= 2
    fetch_model(url, tmp_path / "back")
    assert same(model, tmp_path / "back")


def test_a_part_that_was_damaged_on_this_disk_is_fetched_anew(proxy: Proxy, url: str, tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    publish(model, url)
    proxy.decide = after(2, is_part_fetched)
    with pytest.raises(DetoxError):
        fetch_model(url, tmp_path / "back")
    [begun] = (tmp_path / ".back.part").rglob("model.safetensors")
    content = begun.read_bytes()
    begun.write_bytes(b"\0" * len(content))  # as after a power failure
    proxy.decide = lambda request: None
    fetch_model(url, tmp_path / "back")
    assert same(model, tmp_path / "back")


def test_what_is_left_of_another_version_does_not_get_in(proxy: Proxy, url: str, tmp_path: Path) -> None:
    old = make_model(tmp_path / "old", seed=1)
    (old / "artifacts" / "only-in-old.json").write_text("{}")
    publish(old, url)
    proxy.decide = after(2, is_part_fetched)
    with pytest.raises(DetoxError):
        fetch_model(url, tmp_path / "back")
    proxy.decide = lambda request: None
    new = make_model(tmp_path / "new", seed=2)
    publish(new, url)
    fetch_model(url, tmp_path / "back")
    assert same(new, tmp_path / "back")
    assert not list((tmp_path / "back").rglob("only-in-old.json"))
    assert not list(tmp_path.rglob("*.llm-detox-parts"))


def test_parts_that_nobody_came_back_for_are_cleaned_up(
    proxy: Proxy, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(make_model(tmp_path / "current", seed=1), url)
    proxy.decide = after(2, is_part_sent)
    with pytest.raises(DetoxError):
        publish(make_model(tmp_path / "given-up", seed=2), url)
    proxy.decide = lambda request: None
    place, client = Place.parse(url), connect()

    def begun() -> int:
        return len(client.list_multipart_uploads(Bucket=place.bucket, Prefix=f"{place.key}/").get("Uploads", ()))

    assert begun() == 1
    prune(url)
    assert begun() == 1, "an upload of today may still be going on"
    monkeypatch.setattr("llm_detox.storage.publishing._UNFINISHED", timedelta(0))
    prune(url)
    assert begun() == 0
    assert fetch_model(url, tmp_path / "back").files == 2
