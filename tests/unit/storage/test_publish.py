"""Publishing to and fetching from a real store (SeaweedFS), with real credentials."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_detox.errors import DetoxError, UsageError
from llm_detox.runs.folders import step_folder
from llm_detox.storage import fetch_model, fetch_source, layout, publish
from llm_detox.storage.publishing import prune, rollback, versions
from llm_detox.storage.s3 import Place, connect
from llm_detox.storage.seaweed import Seaweed, _has_volumes
from serving.caikit import checksums
from tests.helpers.answering import reply
from tests.helpers.published import MIB, make_model


def objects(store: Seaweed, url: str) -> dict[str, bytes]:
    place, client = Place.parse(url), connect(store.env())
    found = client.list_objects_v2(Bucket=place.bucket, Prefix=place.key + "/").get("Contents", ())
    return {one["Key"]: client.get_object(Bucket=place.bucket, Key=one["Key"])["Body"].read() for one in found}


def test_what_is_fetched_is_what_was_published(tmp_path: Path, url: str) -> None:
    model = make_model(tmp_path / "model", size=40 * MIB)  # several parts
    result = publish(model, url)
    assert result.address == f"{url}/{result.digest}"
    for address, name in ((url, "by-pointer"), (result.address, "by-version")):
        fetched = fetch_model(address, tmp_path / name)
        assert fetched.digest == result.digest
        for path in model.rglob("*"):
            if path.is_file() and path.name != "manifest.json":
                assert (tmp_path / name / path.relative_to(model)).read_bytes() == path.read_bytes()


def test_the_folder_inside_holds_the_list_of_checksums_too(tmp_path: Path, url: str, env: Seaweed) -> None:
    """vLLM is given `artifacts` alone, and compares it before it serves."""
    model = make_model(tmp_path / "model")
    published = publish(model, url)
    prefix = f"{Place.parse(published.address).key}/"
    stored = {key.removeprefix(prefix): data for key, data in objects(env, published.address).items()}
    assert stored["artifacts/checksums.json"] == stored["checksums.json"]
    fetch_model(published.address, tmp_path / "back")
    assert publish(tmp_path / "back", url).address == published.address
    for name, data in stored.items():
        (tmp_path / "pod" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pod" / name).write_bytes(data)
    assert checksums.compare(tmp_path / "pod", published.digest)[0] == published.files
    assert checksums.compare(tmp_path / "pod" / "artifacts", published.digest)[0] == published.files - 1


def test_the_same_model_gets_the_same_address_and_nothing_is_sent_twice(tmp_path: Path, url: str) -> None:
    first = publish(make_model(tmp_path / "a"), url)
    (tmp_path / "b").mkdir()
    other = make_model(tmp_path / "b" / "model")
    (other / "manifest.json").write_text(json.dumps({"seconds": 99}))
    second = publish(other, url)
    assert second.address == first.address
    assert (first.sent, second.sent, second.kept) == (5, 0, 5)
    assert len(versions(url)) == 1


def test_unchanged_big_files_are_copied_inside_the_store(tmp_path: Path, url: str) -> None:
    publish(make_model(tmp_path / "a", seed=1), url)
    second = publish(make_model(tmp_path / "b", seed=2), url)
    assert second.copied == 1
    assert second.sent == 4
    fetch_model(url, tmp_path / "back")
    assert (tmp_path / "back" / "config.yml").read_text() == "name: model 2\n"
    assert (tmp_path / "back/artifacts/model.safetensors").stat().st_size == 3 * MIB


def test_a_damaged_object_is_noticed_when_fetched_and_leaves_nothing(tmp_path: Path, url: str, env: Seaweed) -> None:
    address = publish(make_model(tmp_path / "model"), url).address
    place = Place.parse(address) / "artifacts/model.safetensors"
    connect().put_object(Bucket=place.bucket, Key=place.key, Body=b"\0" * 3 * MIB)
    with pytest.raises(DetoxError, match="SHA-256 differs"):
        fetch_model(url, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_publishing_again_repairs_a_damaged_version(tmp_path: Path, url: str, env: Seaweed) -> None:
    model = make_model(tmp_path / "model")
    place = Place.parse(publish(model, url).address) / "artifacts/model.safetensors"
    connect().put_object(Bucket=place.bucket, Key=place.key, Body=b"\0" * 3 * MIB)
    assert publish(model, url).sent == 1
    fetch_model(url, tmp_path / "back")


def test_the_pointer_is_not_moved_when_the_store_holds_something_else(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = publish(make_model(tmp_path / "a", seed=1), url)
    real = layout.sum_file
    wrong = layout.FileSum("0" * 64, 3 * MIB, "0" * 32)
    monkeypatch.setattr(layout, "sum_file", lambda path, part: (
        wrong if path.name == "model.safetensors" else real(path, part)))
    with pytest.raises(DetoxError, match="does not hold what was sent"):
        publish(make_model(tmp_path / "b", seed=2), url)
    assert [one.digest for one in versions(url)] == [old.digest]


def test_an_interrupted_fetch_goes_on_where_it_stopped(
    tmp_path: Path, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(make_model(tmp_path / "model"), url)
    staging = tmp_path / ".back.part" / "artifacts"
    staging.mkdir(parents=True)
    (staging / "model.safetensors").write_bytes((tmp_path / "model/artifacts/model.safetensors").read_bytes())
    (staging / "config.json").write_text("half a fi")
    fetch_model(url, tmp_path / "back")
    assert "1 of 5 files are here" in capsys.readouterr().err
    assert (tmp_path / "back/artifacts/config.json").read_text() == "{}"


def test_a_folder_that_holds_something_else_is_not_overwritten(tmp_path: Path, url: str) -> None:
    publish(make_model(tmp_path / "model"), url)
    (tmp_path / "back").mkdir()
    with pytest.raises(DetoxError, match="holds something else"):
        fetch_model(url, tmp_path / "back")
    fetch_model(url, tmp_path / "other")
    fetch_model(url, tmp_path / "other")  # holds this very version: kept


def test_roll_back_and_clean_up(tmp_path: Path, url: str, env: Seaweed) -> None:
    digests = [publish(make_model(tmp_path / str(i), seed=i), url).digest for i in range(4)]
    assert [one.digest for one in versions(url)] == digests[::-1]
    assert rollback(url).digest == digests[2]
    assert rollback(url, digests[0][:10]).digest == digests[0]
    assert fetch_model(url, tmp_path / "back").digest == digests[0]
    assert prune(url, keep=2) == [digests[1]]
    assert [(one.digest, one.current) for one in versions(url)] == [
        (digests[3], False), (digests[2], False), (digests[0], True)]
    assert not any(digests[1] in key for key in objects(env, url))
    with pytest.raises(DetoxError, match="no older version"):
        rollback(url)


def test_rolling_back_to_an_incomplete_version_is_refused(tmp_path: Path, url: str, env: Seaweed) -> None:
    old = Place.parse(publish(make_model(tmp_path / "0", seed=0), url).address)
    new = publish(make_model(tmp_path / "1", seed=1), url)
    connect().delete_object(Bucket=old.bucket, Key=(old / "artifacts/model.safetensors").key)
    with pytest.raises(DetoxError, match="incomplete"):
        rollback(url)
    assert fetch_model(url, tmp_path / "back").digest == new.digest


def test_sources_from_the_store(tmp_path: Path, url: str, env: Seaweed) -> None:
    place, client = Place.parse(url), connect()
    client.put_object(Bucket=place.bucket, Key=(place / "data/a.jsonl").key, Body=b"1")
    client.put_object(Bucket=place.bucket, Key=(place / "data/deep/b.jsonl").key, Body=b"2")
    single = fetch_source(f"{url}/data/a.jsonl")
    assert (single.name, single.read_bytes()) == ("a.jsonl", b"1")
    folder = fetch_source(f"{url}/data")
    assert (folder / "deep/b.jsonl").read_bytes() == b"2"
    client.put_object(Bucket=place.bucket, Key=(place / "data/a.jsonl").key, Body=b"3")
    assert fetch_source(f"{url}/data/a.jsonl").read_bytes() == b"3"
    publish(make_model(tmp_path / "model"), f"{url}/model")
    assert (fetch_source(f"{url}/model") / "model.safetensors").exists()
    with pytest.raises(DetoxError, match="no object and no prefix"):
        fetch_source(f"{url}/nothing")


@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_a_refused_key_gives_one_clear_error_without_the_secret(
    name: str, tmp_path: Path, url: str, env: Seaweed, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(tmp_path / "model")
    monkeypatch.setenv(name, "wrong-value-xyz")
    for call in (lambda: publish(model, url), lambda: fetch_model(url, tmp_path / "back"), lambda: fetch_source(url)):
        with pytest.raises(DetoxError) as caught:
            call()
        message = str(caught.value)
        assert "refuses the access key" in message
        assert env.endpoint in message
        assert "s3://models" in message
        assert "AWS_SECRET_ACCESS_KEY" in message
        assert "wrong-value-xyz" not in message
        assert env.secret_key not in message
    assert not objects(env, url)
    assert not (tmp_path / "back").exists()


def test_no_credentials_and_no_store_are_told_apart(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(tmp_path / "model")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(DetoxError, match="no credentials"):
        publish(model, url)
    monkeypatch.setenv("AWS_S3_ENDPOINT", "127.0.0.1:9")
    with pytest.raises(DetoxError, match="not a URL"):
        publish(model, url)
    monkeypatch.setenv("AWS_S3_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "b")
    monkeypatch.setattr("llm_detox.storage.patience.ATTEMPTS", 1)
    with pytest.raises(DetoxError, match="does not answer"):
        publish(model, url)


def test_a_missing_bucket_and_a_missing_model_are_named(tmp_path: Path, env: Seaweed) -> None:
    with pytest.raises(DetoxError, match="no model is published here"):
        fetch_model("s3://models/never-published", tmp_path / "back")
    with pytest.raises(DetoxError, match="no such folder"):
        publish(tmp_path / "absent", "s3://models/x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DetoxError, match="is empty"):
        publish(tmp_path / "empty", "s3://models/x")
    with pytest.raises(DetoxError, match="bucket does not exist"):
        fetch_model("s3://no-such-bucket/x", tmp_path / "back")


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(make_model(tmp_path / "model"), url)

    class Usage:
        free = 100

    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage)
    with pytest.raises(DetoxError, match="disk is full"):
        fetch_model(url, tmp_path / "back")
    assert not (tmp_path / "back").exists()
    assert not (tmp_path / ".back.part").exists()


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../../b", "a\\b", "", ".", "a//b"])
def test_names_that_lead_out_of_the_folder_are_refused(name: str) -> None:
    index = {"files": {name: {"sha256": "0" * 64, "bytes": 1}}}
    with pytest.raises(DetoxError, match="damaged"):
        layout.Index.checked(index, "here")


@pytest.mark.parametrize("url", ["http://bucket/x", "s3://", "bucket/x", "s3:///x", "s3://b/../x"])
def test_a_malformed_address_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="not an S3 address"):
        Place.parse(url)


@given(st.binary(max_size=400), st.integers(1, 100))
def test_etags_follow_the_rule_for_parts(tmp_path_factory: pytest.TempPathFactory, data: bytes, part: int) -> None:
    path = tmp_path_factory.getbasetemp() / "etag"
    path.write_bytes(data)
    found = layout.sum_file(path, part)
    md5 = [hashlib.md5(data[i:i + part]) for i in range(0, len(data), part)]  # noqa: S324
    many = hashlib.md5(b"".join(one.digest() for one in md5)).hexdigest()  # noqa: S324
    expected = f"{many}-{len(md5)}" if len(data) >= part else hashlib.md5(data).hexdigest()  # noqa: S324
    parts = tuple(one.hexdigest() for one in md5) if len(data) >= part else ()
    assert found == layout.FileSum(hashlib.sha256(data).hexdigest(), len(data), expected, parts)


def test_a_store_can_be_found_again_and_keeps_its_secrets_private(env: Seaweed) -> None:
    again = Seaweed.attach(env.folder)
    assert again == env
    for name in ("seaweed.json", "s3.json"):
        assert (env.folder / name).stat().st_mode & 0o077 == 0
    assert env.secret_key not in repr(env)
    command = Path(f"/proc/{env.process.pid}/cmdline").read_bytes() if os.path.exists("/proc/self") else b""
    assert env.secret_key.encode() not in command


def test_a_port_in_use_is_named(tmp_path: Path, env: Seaweed) -> None:
    port: Any = int(env.endpoint.rpartition(":")[2])
    with pytest.raises(DetoxError, match=f"port {port}"):
        Seaweed.start(tmp_path / "second", port=port)


def test_a_second_store_in_one_folder_is_refused_and_the_first_is_left_alone(env: Seaweed) -> None:
    with pytest.raises(DetoxError, match=f"a store runs here already, as process {env.process.pid}"):
        Seaweed.start(env.folder)
    assert Seaweed.attach(env.folder) == env


def test_a_folder_that_is_no_longer_what_convert_wrote_is_not_published(tmp_path: Path, url: str) -> None:
    model = tmp_path / "model"
    with step_folder(model, "caikit-model", settings={}, inputs={}) as folder:
        make_model(folder.path / "inner")
    (model / "inner" / "config.yml").write_text("name: another\n")
    with pytest.raises(DetoxError, match="not what the step wrote") as caught:
        publish(model, url)
    assert str(model / "inner" / "config.yml") in str(caught.value)


@pytest.mark.parametrize(("nodes", "ready"), [(None, False), ([], False), ([{"Url": "127.0.0.1:1"}], True)])
def test_a_store_is_not_ready_before_its_volumes_are_known(nodes: list[Any] | None, ready: bool) -> None:
    """Until then, reads of what it holds end with InternalError."""
    racks = [{"Id": "rack", "DataNodes": nodes}]
    topology = {"DataCenters": [{"Id": "center", "Racks": racks}] if nodes is not None else None}

    class Master(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            reply(self, 200, json.dumps({"Topology": topology}).encode())

    with HTTPServer(("127.0.0.1", 0), Master) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        assert _has_volumes(server.server_port) is ready


def test_loading_the_parts_leaves_the_functions_of_the_package_callable() -> None:
    from llm_detox.storage import publish

    assert callable(publish)
