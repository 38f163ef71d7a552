"""The same on every store: with its own authority, with the bucket in the host's name, and on an old MinIO.

MinIO is tried where `LLM_DETOX_MINIO` names its program (an old one lies in the npm package
@dragon-den/install-minio 0.0.3: it knows neither the newer checksum headers nor conditional writes).
"""

from __future__ import annotations

import os
import random
import shutil
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from llm_detox import processes
from llm_detox.errors import DetoxError
from llm_detox.storage import fetch_model, publish
from llm_detox.storage.publishing import prune, rollback, versions
from llm_detox.storage.s3 import connect
from llm_detox.storage.seaweed import Seaweed, find_weed
from tests.helpers.certificates import Certificates, make_certificates

MIB = 2**20
BUCKET = "models"


@dataclass
class Store:
    """A store that answers over HTTP and HTTPS, to paths and to hosts `BUCKET.localhost`."""

    http: str
    https: str
    keys: dict[str, str]
    certificates: Certificates


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module", params=["seaweedfs", pytest.param("minio", marks=pytest.mark.slow)])
def store(request: pytest.FixtureRequest, certificates: Certificates,
          tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    folder = tmp_path_factory.mktemp(request.param)
    yield from (_seaweedfs if request.param == "seaweedfs" else _minio)(folder, certificates)


def _seaweedfs(folder: Path, c: Certificates) -> Iterator[Store]:
    try:
        find_weed()
    except DetoxError as error:
        pytest.skip(str(error))
    [port] = processes.free_ports(1)
    running = Seaweed.start(folder, buckets=[BUCKET], options=(
        f"-s3.port.https={port}", f"-s3.cert.file={c.server}", f"-s3.key.file={c.server_key}",
        "-s3.domainName=localhost"))
    yield Store(running.endpoint.replace("127.0.0.1", "localhost"), f"https://localhost:{port}", running.env(), c)
    running.stop()


def _minio(folder: Path, c: Certificates) -> Iterator[Store]:
    program = os.environ.get("LLM_DETOX_MINIO")
    if not program:
        pytest.skip("set LLM_DETOX_MINIO to the program `minio`")
    (folder / "certs").mkdir()
    shutil.copyfile(c.server, folder / "certs" / "public.crt")
    shutil.copyfile(c.server_key, folder / "certs" / "private.key")
    keys = {"AWS_ACCESS_KEY_ID": "detox-tests", "AWS_SECRET_ACCESS_KEY": "detox-tests-secret"}
    env = {**os.environ, "MINIO_ROOT_USER": keys["AWS_ACCESS_KEY_ID"],
           "MINIO_ROOT_PASSWORD": keys["AWS_SECRET_ACCESS_KEY"], "MINIO_DOMAIN": "localhost"}
    ports = processes.free_ports(4)
    urls, started = [], []
    for number, certs in enumerate([folder / "none", folder / "certs"]):  # it takes HTTP or HTTPS, not both
        where = f"127.0.0.1:{ports[2 * number]}"
        started.append(processes.spawn("minio", [
            program, "server", str(folder / f"data-{number}"), "--address", where, "--console-address",
            f"127.0.0.1:{ports[2 * number + 1]}", "--certs-dir", str(certs)], log=folder / f"{number}.log", env=env))
        urls.append(f"http{'s' if number else ''}://localhost:{ports[2 * number]}")
    try:
        for url in urls:
            _wait(url)
            env = {**keys, "AWS_S3_ENDPOINT": url, "AWS_CA_BUNDLE": str(c.ca)}
            connect(env).create_bucket(Bucket=BUCKET)
        yield Store(urls[0], urls[1], keys, c)
    finally:
        processes.stop_all(started)


def _wait(url: str) -> None:
    port = int(url.rpartition(":")[2])
    for _ in range(200):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=2).close()
            return
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"{url} does not answer")


@pytest.fixture(params=["path over HTTPS", "host over HTTP", *(
    pytest.param(one, marks=pytest.mark.slow) for one in ("path over HTTP", "host over HTTPS"))])
def way(request: pytest.FixtureRequest, store: Store, monkeypatch: pytest.MonkeyPatch) -> str:
    style, _, scheme = str(request.param).partition(" over ")
    for name, value in store.keys.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    monkeypatch.setenv("AWS_S3_ENDPOINT", store.https if scheme == "HTTPS" else store.http)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(store.certificates.ca))
    monkeypatch.setenv("AWS_S3_ADDRESSING_STYLE", "virtual" if style == "host" else "path")
    for module in ("publishing", "fetch"):
        monkeypatch.setattr(f"llm_detox.storage.{module}.part_size", lambda largest: 5 * MIB)
    plain = socket.getaddrinfo

    def found(host: Any, *rest: Any, **options: Any) -> Any:
        return plain("127.0.0.1" if str(host).endswith("localhost") else host, *rest, **options)

    monkeypatch.setattr(socket, "getaddrinfo", found)
    return style


def make_model(folder: Path, seed: int) -> Path:
    (folder / "artifacts").mkdir(parents=True)
    (folder / "config.yml").write_text(f"name: {seed}\n")
    (folder / "artifacts" / "name with spaces ü+&.txt").write_text("text")
    (folder / "artifacts" / "model.safetensors").write_bytes(random.Random(seed // 2).randbytes(11 * MIB))
    return folder


def test_publish_fetch_versions_roll_back_and_clean_up(way: str, tmp_path: Path, request: Any) -> None:
    url = f"s3://{BUCKET}/{abs(hash(request.node.name))}"
    results = [publish(make_model(tmp_path / str(seed), seed), url) for seed in range(4)]
    assert [one.copied for one in results] == [0, 1, 0, 1], "every second model has the file of the one before"
    assert [one.digest for one in versions(url)] == [one.digest for one in reversed(results)]
    assert rollback(url, results[1].digest).digest == results[1].digest
    assert fetch_model(url, tmp_path / "back").digest == results[1].digest
    for path in (tmp_path / "1").rglob("*.*"):
        assert (tmp_path / "back" / path.relative_to(tmp_path / "1")).read_bytes() == path.read_bytes()
    assert prune(url, keep=1) == [results[2].digest, results[0].digest]
    assert publish(tmp_path / "2", url).sent > 0


def test_another_authority_is_not_trusted(store: Store, way: str, tmp_path: Path,
                                         monkeypatch: pytest.MonkeyPatch) -> None:
    if os.environ["AWS_S3_ENDPOINT"].startswith("http:"):
        pytest.skip("nothing to trust")
    monkeypatch.setattr("llm_detox.storage.patience.ATTEMPTS", 1)
    for bundle in (store.certificates.other_ca, None):
        monkeypatch.delenv("AWS_CA_BUNDLE")
        if bundle:
            monkeypatch.setenv("AWS_CA_BUNDLE", str(bundle))
        with pytest.raises(DetoxError, match="certificate is not trusted") as caught:
            fetch_model(f"s3://{BUCKET}/x", tmp_path / "back")
        assert "AWS_CA_BUNDLE" in str(caught.value)
        monkeypatch.setenv("AWS_CA_BUNDLE", "")
