"""Stores and networks that fail: success or one clear error, and never a pointer to an incomplete model."""

from __future__ import annotations

import errno
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from llm_detox.errors import DetoxError
from llm_detox.storage import fetch_model, patience, publish
from llm_detox.storage.publishing import versions
from llm_detox.storage.s3 import Place, connect
from llm_detox.storage.seaweed import Seaweed
from tests.helpers.disks import disk
from tests.helpers.faultproxy import Decide, Fault, Lost, Proxy, Redirect, Request, Reset, Stall, Status
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
    monkeypatch.setattr(patience, "READ_SECONDS", 3)
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


@pytest.fixture
def short_patience(monkeypatch: pytest.MonkeyPatch) -> float:
    """A hundredth of the real one's waiting; returns the bound for giving up."""
    for name, seconds in (("PATIENCE_SECONDS", 1.5), ("READ_SECONDS", 1.0), ("CONNECT_SECONDS", 1.0),
                          ("_WORD_SECONDS", 0.3), ("ATTEMPTS", 30)):
        monkeypatch.setattr(patience, name, seconds)
    return 1.5 + 1.0


def test_a_dead_store_is_given_up_within_a_minute() -> None:
    assert patience.PATIENCE_SECONDS + patience.READ_SECONDS <= 50
    assert patience.CONNECT_SECONDS <= patience.READ_SECONDS


@pytest.mark.parametrize("dies", ["before", "at a file"])
def test_a_store_that_has_died_behind_a_proxy_is_given_up_in_time_and_waited_for_with_words(
    dies: str, proxy: Proxy, url: str, tmp_path: Path, short_patience: float, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(make_model(tmp_path / "model"), url)
    part = {"before": "", "at a file": "safetensors"}[dies]
    proxy.decide = lambda request: Stall(5) if part in request.path else None
    started = time.monotonic()
    with pytest.raises(DetoxError, match="the store does not answer"):
        fetch_model(url, tmp_path / "back")
    assert time.monotonic() - started < short_patience + 1.5
    said = capsys.readouterr().err
    assert f"the store at {proxy.url}: no answer for" in said
    assert f"the store at {proxy.url}: ReadTimeoutError; trying again for" in said
    assert not (tmp_path / "back").exists()


def test_an_answer_that_stops_in_its_middle_is_given_up_in_time(
    proxy: Proxy, url: str, tmp_path: Path, short_patience: float
) -> None:
    publish(make_model(tmp_path / "model"), url)
    proxy.decide = lambda request: Reset(late=True) if "safetensors" in request.path else None
    started = time.monotonic()
    with pytest.raises(DetoxError, match="does not answer"):
        fetch_model(url, tmp_path / "back")
    assert time.monotonic() - started < short_patience + 1.5


def test_a_store_whose_disk_is_full_is_given_up_in_time_with_words(
    proxy: Proxy, url: str, tmp_path: Path, short_patience: float, capsys: pytest.CaptureFixture[str]
) -> None:
    proxy.decide = lambda request: Status(500, "InternalError") if request.method == "PUT" else None
    started = time.monotonic()
    with pytest.raises(DetoxError, match="the store failed: InternalError"):
        publish(make_model(tmp_path / "model"), url)
    assert time.monotonic() - started < short_patience + 1.5
    assert f"the store at {proxy.url}: InternalError; trying again for" in capsys.readouterr().err


@pytest.mark.slow
def test_a_real_store_whose_disk_is_full_is_given_up_in_time_with_words(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.undo()  # the real pauses
    model = make_model(tmp_path / "model")
    with disk(tmp_path / "disk", 1000) as small:
        store = Seaweed.start(small / "store", buckets=["models"])
        try:
            for name, value in store.env().items():
                monkeypatch.setenv(name, value)
            started = time.monotonic()
            with pytest.raises(DetoxError, match=r"the store failed: InternalError|the store does not answer"):
                publish(model, url)
            assert time.monotonic() - started < patience.PATIENCE_SECONDS + patience.READ_SECONDS + 5
        finally:
            store.stop()
    assert "trying again for" in capsys.readouterr().err


def test_a_store_that_is_started_on_a_full_disk_says_so_without_its_stacks(tmp_path: Path) -> None:
    with disk(tmp_path / "disk", 100) as small, pytest.raises(DetoxError, match="the disk is full") as caught:
        Seaweed.start(small / "store")
    assert str(small / "store") in str(caught.value)
    assert "goroutine" not in str(caught.value)


def test_a_store_that_comes_back_in_time_is_waited_for(
    proxy: Proxy, url: str, tmp_path: Path, short_patience: float
) -> None:
    model, since = make_model(tmp_path / "model"), time.monotonic()
    proxy.decide = lambda request: Status(503, "ServiceUnavailable") if time.monotonic() - since < 0.7 else None
    publish(model, url)
    proxy.decide = lambda request: None
    fetch_model(url, tmp_path / "back")
    assert same(model, tmp_path / "back")


@pytest.mark.parametrize("fault", [
    Redirect("https://user:secret@store.example:9000/"), Redirect("/x", 307), Status(301, "PermanentRedirect"),
], ids=str)
def test_a_redirect_is_one_clear_message(fault: Fault, proxy: Proxy, url: str, tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    proxy.decide = lambda request: fault
    for call in (lambda: publish(model, url), lambda: fetch_model(url, tmp_path / "back")):
        with pytest.raises(DetoxError, match="the store sends the request on to") as caught:
            call()
        assert "AWS_S3_ENDPOINT" in str(caught.value.remedy)
        assert "secret" not in str(caught.value)
        if isinstance(fault, Redirect):
            assert fault.location.rpartition("@")[2] in str(caught.value)
    assert len(proxy.seen) <= 4, "it was asked again and again"


def test_an_object_that_goes_while_it_is_fetched_is_named(proxy: Proxy, url: str, tmp_path: Path) -> None:
    address = publish(make_model(tmp_path / "model"), url).address
    proxy.decide = lambda request: Status(404, "NoSuchKey") if request.path.endswith("tokenizer.json") else None
    with pytest.raises(DetoxError, match="the object is missing in the store") as caught:
        fetch_model(url, tmp_path / "back")
    assert f"{address}/artifacts/tokenizer.json" in str(caught.value)


def test_who_may_not_list_may_still_fetch(proxy: Proxy, url: str, tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    publish(model, url)
    proxy.decide = lambda request: Status(403, "AccessDenied") if "list-type" in request.path else None
    fetch_model(url, tmp_path / "back")
    assert same(model, tmp_path / "back")
