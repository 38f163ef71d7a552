"""Stores and networks that fail: success or one clear error, and never a pointer to an incomplete model."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from llm_detox.errors import DetoxError
from llm_detox.storage import fetch_model, publish, s3
from llm_detox.storage.publishing import versions
from llm_detox.storage.s3 import Place, connect
from llm_detox.storage.seaweed import Seaweed
from tests.helpers.faultproxy import Decide, Fault, Lost, Proxy, Request, Reset, Stall, Status
from tests.helpers.folders import same

MIB = 1024 * 1024


pytestmark = pytest.mark.usefixtures("quick_pauses")


def make_model(folder: Path, seed: int = 0) -> Path:
    (folder / "artifacts").mkdir(parents=True)
    (folder / "config.yml").write_text(f"name: model {seed}\n")
    for name in ("config.json", "tokenizer.json", "README.md"):
        (folder / "artifacts" / name).write_text(f"{name} {seed}")
    (folder / "artifacts" / "model.safetensors").write_bytes(random.Random(seed).randbytes(6 * MIB))  # two parts
    return folder


def once_each(fault: Fault, only: Callable[[Request], bool] = lambda request: True) -> Decide:
    """Every request of a kind fails the first time that it is made."""
    failed: set[tuple[str, str]] = set()

    def decide(request: Request) -> Fault:
        if (request.method, request.path) in failed or not only(request):
            return None
        failed.add((request.method, request.path))
        return fault

    return decide


@pytest.mark.parametrize("fault", [
    Status(503, "SlowDown"), Reset(), Reset(late=True), Lost(),
    *(pytest.param(Status(code, name), marks=pytest.mark.slow)
      for code, name in ((500, "InternalError"), (503, "ServiceUnavailable"))),
], ids=str)
def test_what_fails_once_is_repeated(fault: Fault, proxy: Proxy, url: str, tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    proxy.decide = once_each(fault)
    address = publish(model, url).address
    proxy.decide = once_each(fault)
    fetch_model(url, tmp_path / "back")
    assert same(model, tmp_path / "back")
    assert [one.address for one in versions(url)] == [address]


@pytest.mark.slow
def test_a_stall_costs_a_timeout_and_no_more(
    proxy: Proxy, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "READ_SECONDS", 3)
    model = make_model(tmp_path / "model")
    proxy.decide = once_each(Stall(12), lambda request: "partNumber=2" in request.path)
    publish(model, url)
    proxy.decide = once_each(Stall(12), lambda request: request.method == "GET" and "model.safetensors" in request.path)
    fetch_model(url, tmp_path / "back")
    assert same(model, tmp_path / "back")


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_bad_network_is_outlasted(seed: int, proxy: Proxy, url: str, tmp_path: Path) -> None:
    dice = random.Random(seed)
    faults: list[Fault] = [Status(500, "InternalError"), Status(503, "SlowDown"), Reset(), Reset(late=True), Lost()]

    def decide(request: Request) -> Fault:
        with proxy.lock:
            return dice.choice(faults) if dice.random() < 0.12 else None

    model = make_model(tmp_path / "model", seed)
    proxy.decide = decide
    publish(model, url)
    fetch_model(url, tmp_path / "back")
    proxy.decide = lambda request: None
    assert same(model, tmp_path / "back")


def pointer_of(store: Seaweed, url: str) -> bool:
    place = Place.parse(url) / "latest.json"
    found = connect(store.env()).list_objects_v2(Bucket=place.bucket, Prefix=place.key)
    return bool(found.get("KeyCount"))


LASTING = [
    (Status(500, "InternalError"), "the store failed: InternalError"),
    (Status(503, "SlowDown"), "the store failed: SlowDown"), (Reset(), "does not answer"),
    (Status(403, "AccessDenied"), "refuses the access key"), (Status(400, "ExpiredToken"), "have expired"),
    (Status(403, "RequestTimeTooSkewed"), "clock is wrong"), (Status(404, "NoSuchBucket"), "bucket does not exist"),
]


@pytest.mark.parametrize(("fault", "message", "where"), [
    *((*one, "small files") for one in LASTING), (*LASTING[3], "index"), (*LASTING[3], "pointer"),
    *(pytest.param(*one, "parts", marks=pytest.mark.slow) for one in LASTING),
], ids=lambda one: str(one)[:30])
def test_what_lasts_gives_one_error_and_no_pointer(
    where: str, fault: Fault, message: str, proxy: Proxy, store: Seaweed, url: str, tmp_path: Path
) -> None:
    def hit(request: Request) -> bool:
        return {"parts": "partNumber=2" in request.path, "small files": request.path.endswith("tokenizer.json"),
                "index": request.method == "PUT" and request.path.endswith("checksums.json"),
                "pointer": request.method == "PUT" and request.path.endswith("latest.json")}[where]

    proxy.decide = lambda request: fault if hit(request) else None
    model = make_model(tmp_path / "model")
    with pytest.raises(DetoxError, match=message) as caught:
        publish(model, url)
    assert caught.value.remedy
    assert proxy.url in str(caught.value)
    assert not pointer_of(store, url)
    proxy.decide = lambda request: None
    sent = publish(model, url)
    assert sent.sent < sent.files, "what had arrived was sent again"
    fetch_model(url, tmp_path / "back")
    assert same(model, tmp_path / "back")


def test_a_failing_publish_leaves_the_old_version_current(proxy: Proxy, url: str, tmp_path: Path) -> None:
    old = publish(make_model(tmp_path / "old", 1), url)
    proxy.decide = lambda request: Reset() if "partNumber=2" in request.path else None
    with pytest.raises(DetoxError):
        publish(make_model(tmp_path / "new", 2), url)
    proxy.decide = lambda request: None
    assert fetch_model(url, tmp_path / "back").digest == old.digest
    assert same(tmp_path / "old", tmp_path / "back")


def test_credentials_that_expire_midway_stop_the_fetch_and_fresh_ones_go_on(
    proxy: Proxy, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_model(tmp_path / "model")
    publish(model, url)
    proxy.decide = lambda request: Status(400, "ExpiredToken") if "safetensors" in request.path else None
    with pytest.raises(DetoxError, match="have expired"):
        fetch_model(url, tmp_path / "back")
    assert not (tmp_path / "back").exists()
    proxy.decide = lambda request: None
    fetch_model(url, tmp_path / "back")
    assert same(model, tmp_path / "back")


def test_a_disk_that_fills_up_is_named_and_gets_its_room_back(
    proxy: Proxy, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(make_model(tmp_path / "model"), url)

    def full(path: Path, start: int, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("llm_detox.storage.transfer.write_at", full)
    with pytest.raises(DetoxError, match="disk is full"):
        fetch_model(url, tmp_path / "back")
    assert not list(tmp_path.glob("*back*"))
    assert not list(tmp_path.glob(".*back*"))


def test_two_publishers_at_once_lose_no_version(proxy: Proxy, url: str, tmp_path: Path) -> None:
    first = publish(make_model(tmp_path / "a", 1), url)
    other: list[str] = []

    def decide(request: Request) -> Fault:
        if request.method == "PUT" and request.path.endswith("latest.json") and not other:
            other.append("")
            proxy.decide = lambda request: None
            other[0] = publish(make_model(tmp_path / "c", 3), url).digest  # between reading and writing
            proxy.decide = decide
        return None

    proxy.decide = decide
    second = publish(make_model(tmp_path / "b", 2), url)
    assert {one.digest for one in versions(url)} == {first.digest, second.digest, other[0]}
