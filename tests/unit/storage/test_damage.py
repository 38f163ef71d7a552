"""A pointer, a list of checksums or a folder that somebody damaged: refused by name, and mended as it is advised."""

from __future__ import annotations

import json
import random
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from benchmarks.campaigns import tampered_model
from llm_detox.errors import DetoxError
from llm_detox.storage import fetch_model, fetch_source, layout, publish
from llm_detox.storage.pointer import SmallObject, parsed_index
from llm_detox.storage.publishing import prune, rollback, versions
from llm_detox.storage.s3 import Place, connect
from tests.helpers.disks import disk, make_read_only
from tests.helpers.folders import same

pytestmark = pytest.mark.usefixtures("env", "quick_pauses")
DIGEST = "0123456789abcdef" * 2


def make_model(folder: Path, seed: int = 0) -> Path:
    (folder / "artifacts").mkdir(parents=True)
    (folder / "config.yml").write_text(f"name: model {seed}\n")
    (folder / "artifacts" / "config.json").write_text("{}")
    return folder


def put(place: Place, body: bytes) -> None:
    connect().put_object(Bucket=place.bucket, Key=place.key, Body=body)


def keys(place: Place) -> list[str]:
    answer = connect().list_objects_v2(Bucket=place.bucket, Prefix=f"{place.key}/")
    return [one["Key"] for one in answer.get("Contents", ())]


def stored(body: bytes) -> SmallObject:
    return SmallObject(body, "etag", datetime.now(UTC))


def pointer(**changes: Any) -> bytes:
    return json.dumps({"schema": 1, "digest": DIGEST, "versions": [{"digest": DIGEST}], **changes}).encode()


POINTERS = {
    "no JSON": b"{", "a list": b"[]", "null": b"null", "nested": b"[" * 200_000, "not UTF-8": b"\xff\xfe\x00",
    "a number of 5,000 digits": b'{"digest": ' + b"9" * 5000 + b"}",
    "no versions": b'{"digest": "%s"}' % DIGEST.encode(),
    "versions as an object": pointer(versions={}), "a version as a list": pointer(versions=[[]]),
    "a version without digest": pointer(versions=[{}]), "an empty digest": pointer(digest=""),
    "a digest elsewhere": pointer(digest="../m2"), "a version elsewhere": pointer(versions=[{"digest": "../m2"}]),
    "an empty version": pointer(versions=[{"digest": ""}]), "NUL": pointer(digest="\0" * 32),
    "a lone surrogate": pointer(digest="\ud800" * 32), "300 characters": pointer(digest="a" * 300),
    "a list as digest": pointer(digest=[DIGEST]),
    "a negative size": pointer(versions=[{"digest": DIGEST, "bytes": -1}]),
    "a huge size": pointer(versions=[{"digest": DIGEST, "bytes": 10**30}]),
    "a yes as a size": pointer(versions=[{"digest": DIGEST, "bytes": True}]),
    "a list as a time": pointer(versions=[{"digest": DIGEST, "published": []}]),
}


@pytest.mark.parametrize("body", POINTERS.values(), ids=POINTERS)
def test_a_pointer_of_another_form_is_damaged(body: bytes) -> None:
    place = Place.parse("s3://models/x")
    with pytest.raises(ValueError, match=r"^\S"):
        layout.Pointer.checked(stored(body).value(), place, "")
    assert layout.Pointer.checked(stored(pointer()).value(), place, "").versions[0].address == f"{place}/{DIGEST}"


@pytest.mark.parametrize("name", ["nested", "a version elsewhere"])
def test_a_damaged_pointer_is_named_with_the_remedy_that_mends_it(name: str, tmp_path: Path, url: str) -> None:
    old, new = (publish(make_model(tmp_path / str(seed), seed), url) for seed in (1, 2))
    put(Place.parse(url) / "latest.json", POINTERS[name])
    before = keys(Place.parse(url))
    for call in (lambda: fetch_model(url, tmp_path / "back"), lambda: versions(url), lambda: rollback(url),
                 lambda: prune(url, keep=1), lambda: fetch_source(url)):
        with pytest.raises(DetoxError, match="the pointer is damaged") as caught:
            call()
        assert f"{url}/latest.json" in str(caught.value)
        assert "publish a model here again" in str(caught.value.remedy)
    assert keys(Place.parse(url)) == before, "something was removed"
    assert publish(tmp_path / "2", url).digest == new.digest
    assert [(one.digest, one.current) for one in versions(url)] == [(new.digest, True), (old.digest, False)]
    assert fetch_model(url, tmp_path / "back").digest == new.digest


def test_a_version_with_a_damaged_list_is_not_taken_up_into_a_mended_pointer(tmp_path: Path, url: str) -> None:
    old, new = (publish(make_model(tmp_path / str(seed), seed), url) for seed in (1, 2))
    put(Place.parse(old.address) / "checksums.json", b"[]")
    put(Place.parse(url) / f"{DIGEST}/checksums.json", b'{"files": {"a": {"sha256": "%s", "bytes": 1}}}' % (b"0" * 64))
    put(Place.parse(url) / "latest.json", b"[]")
    publish(tmp_path / "2", url)
    assert [one.digest for one in versions(url)] == [new.digest]


INDEXES = {"no JSON": b"{", "a list": b"[]", "nested": b"[" * 200_000, "files as a list": b'{"files": []}',
           "a file as a list": b'{"files": {"a": []}}', "no files": b'{"files": {}}', "not UTF-8": b"\xff"}


@pytest.mark.parametrize("body", INDEXES.values(), ids=INDEXES)
def test_a_list_of_checksums_of_another_form_is_damaged(body: bytes) -> None:
    with pytest.raises(DetoxError, match="the list of checksums is damaged") as caught:
        parsed_index(stored(body), Place.parse("s3://models/x"))
    assert caught.value.place == "s3://models/x/checksums.json"


@pytest.mark.parametrize("name", ["nested", "a file as a list"])
def test_a_damaged_list_of_checksums_is_named_and_mended_by_publishing(name: str, tmp_path: Path, url: str) -> None:
    published = publish(make_model(tmp_path / "model"), url)
    put(Place.parse(published.address) / "checksums.json", INDEXES[name])
    with pytest.raises(DetoxError, match="the list of checksums is damaged") as caught:
        fetch_model(url, tmp_path / "back")
    assert f"{published.address}/checksums.json" in str(caught.value)
    assert "publish the model again" in str(caught.value.remedy)
    assert publish(tmp_path / "model", url).sent == 0
    fetch_model(url, tmp_path / "back")
    assert same(tmp_path / "model", tmp_path / "back")


@pytest.mark.parametrize("name", ["a\0b", "a\nb", "\ud800", "\x1b[2J", "a" * 300, "a/" * 600 + "b", "checksums.json"])
def test_a_name_that_no_disk_takes_is_refused(name: str) -> None:
    with pytest.raises(DetoxError, match="damaged"):
        layout.Index.checked({"files": {name: {"sha256": "0" * 64, "bytes": 1}}}, "here")


def test_a_file_that_is_the_folder_of_another_is_refused() -> None:
    file = {"sha256": "0" * 64, "bytes": 1}
    with pytest.raises(DetoxError, match="'a/b/c' is a file in 'a', which is a file itself"):
        layout.Index.checked({"files": {"a/b/c": file, "a": file}}, "here")


@pytest.mark.parametrize("file", [
    {"sha256": "0" * 64, "bytes": size} for size in (-1, True, 1.0, "1", None, 2**70, float("nan"))] + [
    {"sha256": sha256, "bytes": 1} for sha256 in ("", "0" * 63, "A" * 64, 3, None, ["0" * 64])] + [{}, [], "x", None])
def test_a_listed_file_of_another_form_is_refused(file: Any) -> None:
    with pytest.raises(DetoxError, match="the list of checksums is damaged"):
        layout.Index.checked({"files": {"a": file}}, "here")


@pytest.mark.parametrize("size", [10**13, 1])
def test_a_size_that_the_store_does_not_have_is_not_told_as_a_full_disk(size: int, tmp_path: Path, url: str) -> None:
    published = Place.parse(publish(make_model(tmp_path / "model"), url).address)
    listed = published / "checksums.json"
    index = json.loads(connect().get_object(Bucket=listed.bucket, Key=listed.key)["Body"].read())
    index["files"]["config.yml"]["bytes"] = size
    put(listed, json.dumps(index).encode())
    with pytest.raises(DetoxError, match=f"has 14 bytes in the store, and {size} in the list") as caught:
        fetch_model(url, tmp_path / "back")
    assert f"{published}/config.yml" in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_a_missing_object_is_named(tmp_path: Path, url: str) -> None:
    published = Place.parse(publish(make_model(tmp_path / "model"), url).address)
    connect().delete_object(Bucket=published.bucket, Key=f"{published.key}/artifacts/config.json")
    with pytest.raises(DetoxError, match="the file is missing in the store") as caught:
        fetch_model(url, tmp_path / "back")
    assert f"{published}/artifacts/config.json" in str(caught.value)
    assert "publish the model again" in str(caught.value.remedy)


def test_cleaning_up_removes_no_other_model(tmp_path: Path, url: str) -> None:
    publish(make_model(tmp_path / "other", 7), f"{url}/m2")
    publish(make_model(tmp_path / "model"), f"{url}/m1")
    for digest in ("../m2", ""):
        put(Place.parse(f"{url}/m1") / "latest.json", pointer(versions=[{"digest": DIGEST}, {"digest": digest}]))
        with pytest.raises(DetoxError, match="the pointer is damaged"):
            prune(f"{url}/m1", keep=1)
    fetch_model(f"{url}/m2", tmp_path / "back")


def test_a_link_where_the_fetch_works_is_not_followed(tmp_path: Path, url: str) -> None:
    publish(make_model(tmp_path / "model"), url)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / ".back.part").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DetoxError, match="no folder of this user lies here"):
        fetch_model(url, tmp_path / "back")
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_link_in_an_interrupted_fetch_is_replaced(tmp_path: Path, url: str) -> None:
    publish(make_model(tmp_path / "model"), url)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "precious").write_text("mine")
    (tmp_path / ".back.part").mkdir()
    (tmp_path / ".back.part" / "config.yml").symlink_to(tmp_path / "precious")
    (tmp_path / ".back.part" / "artifacts").symlink_to(tmp_path / "elsewhere")
    fetch_model(url, tmp_path / "back")
    assert (tmp_path / "precious").read_text() == "mine"
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert same(tmp_path / "model", tmp_path / "back")
    assert not any(path.is_symlink() for path in (tmp_path / "back").rglob("*"))


def add_file(back: Path) -> None:
    (back / "artifacts" / "model.safetensors").write_text("another")


def add_link(back: Path) -> None:
    (back / "artifacts" / "model.py").symlink_to("/dev/null")


def change_byte(back: Path) -> None:
    (back / "artifacts" / "config.json").write_text("[]")


def remove(back: Path) -> None:
    (back / "config.yml").unlink()


def change_list(back: Path) -> None:
    listed = back / "checksums.json"
    listed.write_text(listed.read_text().replace("config.yml", "config.yaml"))


def test_a_fetched_folder_that_was_tampered_with_does_not_pass_as_verified(tmp_path: Path, url: str) -> None:
    publish(make_model(tmp_path / "model"), url)
    fetch_model(url, tmp_path / "back")
    for tamper in (add_file, add_link, change_byte, remove, change_list):
        shutil.copytree(tmp_path / "back", tmp_path / tamper.__name__)
        fetch_model(url, tmp_path / tamper.__name__)
        tamper(tmp_path / tamper.__name__)
        with pytest.raises(DetoxError, match="holds something else: "):
            fetch_model(url, tmp_path / tamper.__name__)
    add_file(fetch_source(url).parent)
    with pytest.raises(DetoxError, match="holds something else: "):
        fetch_source(url)


def test_nobody_gets_anything_but_what_was_published_whatever_is_changed_in_the_store(tmp_path: Path, url: str) -> None:
    """The campaign in its small form, one change of each kind; `make campaign` runs it whole."""
    rng, tally = random.Random(3), tampered_model.Tally()
    folders = [tampered_model.make_model(tmp_path / name, rng) for name in ("model", "other")]
    targets = [tampered_model.Target(f"{url}/{one.name}", publish(one, f"{url}/{one.name}"), one) for one in folders]
    every = list(tampered_model.cases(targets[0], targets[1], 1, rng))
    (tmp_path / "scratch").mkdir()
    for kind in dict.fromkeys(case.kind for case in every):
        of_kind = [case for case in every if case.kind == kind]
        tampered_model.attack(targets[0], rng.choice(of_kind), tmp_path / "scratch", tally)
    assert tally.problems == []
    assert tally.cases.total() == len(tally.cases) == 9
    assert tally.pod["a file added"] == tally.pod["two files exchanged"] == tally.fetch["another model's list"] == 1


@pytest.mark.parametrize("name", ["a\nb", "\udcff", "\x1b[2J.txt"])
def test_a_file_name_that_a_store_does_not_take_is_found_before_anything_is_sent(name: str, tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    (model / name).write_text("x")
    with pytest.raises(DetoxError, match="cannot be published: the name"):
        publish(model, "s3://no-such-bucket/x")


@pytest.mark.parametrize("kind", ["read-only", "a file", "full"])
def test_a_place_that_a_fetch_cannot_write_is_one_message(kind: str, tmp_path: Path, url: str) -> None:
    model = make_model(tmp_path / "model")
    (model / "artifacts" / "model.safetensors").write_bytes(b"x" * 200_000)
    publish(model, url)
    with disk(tmp_path / "disk", 64) as to:
        if kind == "read-only":
            make_read_only(to)
        elif kind == "a file":
            to = to / "file"
            to.write_text("mine")
        for place in (to / "back", to / "deep" / "back"):
            with pytest.raises(DetoxError, match=r"cannot be written: |the disk is full") as caught:
                fetch_model(url, place)
            assert str(to) in str(caught.value)
            assert caught.value.remedy
        if to.is_dir():
            assert [path for path in to.rglob("*") if path.is_file()] == []
        else:
            assert to.read_text() == "mine"


def test_objects_that_cannot_be_files_of_one_folder_are_refused() -> None:
    with pytest.raises(ValueError, match="'a/b' is a file in 'a', which is a file itself"):
        layout.check_names({"a": (1, ""), "a/b": (1, "")})
