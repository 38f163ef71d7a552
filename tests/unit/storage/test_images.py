"""Models as images: against a real registry (docker-registry), pulled back by a standard client (skopeo)."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from llm_detox.doctor.machine import examine_registry
from llm_detox.errors import DetoxError, UsageError
from llm_detox.recipe.addresses import ImageName
from llm_detox.storage import fetch_model, publish
from llm_detox.storage.images import LAYER_KIND, Layer
from llm_detox.storage.publishing import prune, rollback, versions
from llm_detox.storage.registry import LOGIN_VARIABLES, Login, Registry
from llm_detox.storage.web import CA_VARIABLES
from serving.caikit import checksums
from tests.helpers.certificates import Certificates, make_certificates
from tests.helpers.published import MIB
from tests.helpers.published import make_model as make_large_model
from tests.helpers.registries import (
    HASHED,
    PASSWORD,
    USER,
    RunningRegistry,
    pulled,
    registry,
    token_service,
)


def make_model(folder: Path, seed: int = 0) -> Path:
    return make_large_model(folder, seed, size=MIB // 8)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRegistry]:
    with registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*LOGIN_VARIABLES, *CA_VARIABLES):
        monkeypatch.delenv(name, raising=False)


def unpacked(folder: Path, to: Path) -> Path:
    """The file system of an image that skopeo pulled, as a container runtime makes it; returns its models."""
    for layer in json.loads((folder / "manifest.json").read_bytes())["layers"]:
        with tarfile.open(folder / layer["digest"].removeprefix("sha256:")) as archive:
            archive.extractall(to, filter="fully_trusted")  # noqa: S202  made here
    return to / "models"


def test_a_standard_client_pulls_back_what_was_published_byte_for_byte(
        tmp_path: Path, running: RunningRegistry) -> None:
    model = make_large_model(tmp_path / "model", size=5 * MIB)
    result = publish(model, f"oci://{running.host}/team/model")
    assert result.address == f"oci://{running.host}/team/model@{ImageName.parse(result.address).digest}"
    manifest = pulled(result.address, tmp_path / "image")
    models = unpacked(tmp_path / "image", tmp_path / "root")
    files = {path.relative_to(model).as_posix(): path for path in model.rglob("*")
             if path.is_file() and path.name != "manifest.json"}
    assert {path.relative_to(models).as_posix() for path in models.rglob("*") if path.is_file()} == {
        *files, "checksums.json", "artifacts/checksums.json"}
    for name, path in files.items():
        assert (models / name).read_bytes() == path.read_bytes(), name
    assert [one["mediaType"] for one in manifest["layers"]] == [LAYER_KIND] * 7
    assert result.files == 5


def test_the_pod_compares_an_image_as_it_does_a_version_in_s3(tmp_path: Path, running: RunningRegistry) -> None:
    result = publish(make_model(tmp_path / "model"), f"oci://{running.host}/checked")
    pulled(result.address, tmp_path / "image")
    models = unpacked(tmp_path / "image", tmp_path / "root")
    assert checksums.compare(models, result.digest)[0] == result.files
    assert checksums.compare(models / "artifacts", result.digest)[0] == result.files - 1
    assert checksums.compare(models, ImageName.parse(result.address).digest)[0] == result.files
    (models / "config.yml").write_text("other")
    with pytest.raises(checksums.NotAsPublished, match="SHA-256 differs"):
        checksums.compare(models, ImageName.parse(result.address).digest)


@pytest.mark.heavy
def test_an_image_is_fetched_back_and_a_folder_that_holds_it_is_kept(tmp_path: Path, running: RunningRegistry) -> None:
    model = make_model(tmp_path / "model")
    result = publish(model, f"oci://{running.host}/fetched:stable")
    for address, name in ((result.address, "back"), (result.pointer, "by-tag"), (result.address, "back")):
        fetched = fetch_model(address, tmp_path / name)
        assert (fetched.digest, fetched.files, fetched.bytes) == (result.digest, result.files, result.bytes)
        assert checksums.compare(tmp_path / name, result.digest) == (result.files, result.bytes)
    (tmp_path / "back" / "more").write_text("x")
    with pytest.raises(DetoxError, match="holds something else"):
        fetch_model(result.address, tmp_path / "back")


@pytest.mark.heavy
def test_a_blob_that_was_changed_in_the_registry_is_noticed_and_leaves_nothing(
        tmp_path: Path, running: RunningRegistry) -> None:
    result = publish(make_model(tmp_path / "model", seed=7), f"oci://{running.host}/damaged")
    layer = Layer.of("config.yml", tmp_path / "model" / "config.yml").blob.digest.removeprefix("sha256:")
    data = running.data / "docker/registry/v2/blobs/sha256" / layer[:2] / layer / "data"
    data.write_bytes(data.read_bytes().replace(b"model 7", b"model 8"))
    with pytest.raises(DetoxError, match=r"not what the digest says|SHA-256 differs"):
        fetch_model(result.address, tmp_path / "back")
    assert sorted(path.name for path in tmp_path.iterdir() if "lock" not in path.name) == ["model"]


def test_doctor_begins_an_upload_and_leaves_nothing(running: RunningRegistry) -> None:
    held = running.blobs()
    (good,) = examine_registry(f"oci://{running.host}/new")
    assert good.state == "ok"
    assert running.blobs() == held
    # This registry writes the state of the hash once more after it has removed an upload; nothing goes on with that.
    assert {path.name for path in running.data.glob("**/_uploads/*/*")} <= {"hashstates"}
    (bad,) = examine_registry("oci://127.0.0.1:9/new")
    assert bad.state == "missing"
    assert "does not answer" in bad.text


def test_the_same_folder_gives_the_same_digest_and_nothing_is_sent_twice(
        tmp_path: Path, running: RunningRegistry) -> None:
    url = f"oci://{running.host}/twice"
    first = publish(make_model(tmp_path / "a"), url)
    held = running.blobs()
    (tmp_path / "b").mkdir()
    again = make_model(tmp_path / "b" / "model")
    for path in again.rglob("*"):
        os.utime(path, (1e9, 1e9))
        path.chmod(0o700)
    (again / "manifest.json").write_text("{}")
    second = publish(again, url)
    assert second.address == first.address
    assert (first.sent, second.sent, second.kept) == (7, 0, 7)
    assert running.blobs() == held


@pytest.mark.heavy
def test_of_another_version_only_the_files_that_differ_are_sent(tmp_path: Path, running: RunningRegistry) -> None:
    url = f"oci://{running.host}/changed"
    first = publish(make_model(tmp_path / "a", seed=1), url)
    second = publish(make_model(tmp_path / "b", seed=2), url)
    assert second.address != first.address
    assert (second.sent, second.kept) == (3, 4)  # config.yml and both lists of checksums
    assert pulled(first.address, tmp_path / "old") != pulled(second.address, tmp_path / "new")


@pytest.mark.heavy
def test_a_tag_is_moved_and_without_one_it_is_the_digest_of_the_content(
        tmp_path: Path, running: RunningRegistry) -> None:
    url = f"oci://{running.host}/tagged"
    named = publish(make_model(tmp_path / "a", seed=1), f"{url}:stable")
    assert named.pointer == f"{url}:stable"
    moved = publish(make_model(tmp_path / "b", seed=2), f"{url}:stable")
    plain = publish(tmp_path / "b", url)
    assert plain.pointer == f"{url}:{plain.digest}"
    assert pulled(f"{url}:stable", tmp_path / "s" / "x") == pulled(moved.address, tmp_path / "m" / "x")
    assert pulled(plain.pointer, tmp_path / "p" / "x") == pulled(moved.address, tmp_path / "q" / "x")


@pytest.mark.heavy
def test_a_model_on_a_base_keeps_what_the_base_runs(tmp_path: Path, running: RunningRegistry) -> None:
    """KServe's modelcar runs a shell in the image; it is the base's."""
    shell = tmp_path / "shell"
    (shell / "bin").mkdir(parents=True)
    (shell / "bin" / "sh").write_text("a shell")
    base = publish(shell, f"oci://{running.host}/base")
    model = make_model(tmp_path / "model")
    for repository in ("on-base", "on-base-again"):
        result = publish(model, f"oci://{running.host}/{repository}", base.address)
        assert result.copied == 2
        pulled(result.address, tmp_path / repository / "image")
        models = unpacked(tmp_path / repository / "image", tmp_path / repository / "root")
        assert (models / "bin" / "sh").read_text() == "a shell"
        assert (models / "config.yml").exists()
    assert publish(model, f"oci://{running.host}/on-base", base.address).copied == 0


@pytest.mark.heavy
def test_a_password_is_shown_to_a_registry_that_asks_for_it_over_tls(
        tmp_path: Path, certificates: Certificates, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "htpasswd").write_text(HASHED)
    tls = {"certificate": str(certificates.server), "key": str(certificates.server_key)}
    auth = {"htpasswd": {"realm": "tests", "path": str(tmp_path / "htpasswd")}}
    with registry(tmp_path / "registry", auth=auth, tls=tls) as running:
        model, url = make_model(tmp_path / "model"), f"oci://{running.host}/private"
        with pytest.raises(DetoxError, match="certificate is not trusted"):
            publish(model, url)
        monkeypatch.setenv("LLM_DETOX_CA", str(certificates.ca))
        with pytest.raises(DetoxError, match=r"no right to push .*asks for a login"):
            publish(model, url)
        monkeypatch.setenv("LLM_DETOX_OCI_USER", USER)
        with pytest.raises(DetoxError, match="half a login"):
            publish(model, url)
        monkeypatch.setenv("LLM_DETOX_OCI_PASSWORD", "wrong-" + PASSWORD)
        with pytest.raises(DetoxError, match="no right to push") as refused:
            publish(model, url)
        monkeypatch.setenv("LLM_DETOX_OCI_PASSWORD", PASSWORD)
        address = publish(model, url).address
        pulled(address, tmp_path / "image", login=f"{USER}:{PASSWORD}", ca=certificates.ca)
    said = "".join(capfd.readouterr()) + str(refused.value) + repr(Login.from_environment())
    assert PASSWORD not in said


@pytest.mark.heavy
def test_a_token_is_fetched_from_the_service_that_the_registry_names(
        tmp_path: Path, certificates: Certificates, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_DETOX_OCI_USER", USER)
    monkeypatch.setenv("LLM_DETOX_OCI_PASSWORD", PASSWORD)
    with token_service(certificates, "models") as asked:
        auth = {"token": {"realm": asked[0], "service": "models", "issuer": "tests",
                          "rootcertbundle": str(certificates.ca)}}
        with registry(tmp_path / "registry", auth=auth) as running:
            url = f"oci://{running.host}/team/by-token"
            address = publish(make_model(tmp_path / "model"), url).address
            assert set(asked[1:]) == {"repository:team/by-token:pull,push"}
            pulled(address, tmp_path / "image", login=f"{USER}:{PASSWORD}")
            monkeypatch.setenv("LLM_DETOX_OCI_PASSWORD", "wrong")
            with pytest.raises(DetoxError, match="token service says 401"):
                publish(tmp_path / "model", url)


@pytest.mark.heavy
def test_a_token_that_has_expired_is_fetched_anew(
        tmp_path: Path, certificates: Certificates, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens last minutes, and large models take longer."""
    with token_service(certificates, "models") as asked:
        auth = {"token": {"realm": asked[0], "service": "models", "issuer": "tests",
                          "rootcertbundle": str(certificates.ca)}}
        with registry(tmp_path / "registry", auth=auth) as running:
            name = ImageName.parse(f"oci://{running.host}/long")
            with Registry(name, Login(user=USER, password=PASSWORD), push=True) as client:
                assert not client.has_blob(f"sha256:{'0' * 64}")
                client._authorization = "Bearer expired"
                data = b"content"
                assert client.send_blob(f"sha256:{hashlib.sha256(data).hexdigest()}", len(data), lambda: [data])
            assert len(asked) == 3


def test_plain_http_is_for_this_machine_or_for_who_asks_for_it(
        tmp_path: Path, running: RunningRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_detox.storage.registry._LOOPBACK", re.compile("nothing"))
    model, url = make_model(tmp_path / "model"), f"oci://{running.host}/plain"
    with pytest.raises(DetoxError, match="speaks no TLS") as refused:
        publish(model, url)
    assert "LLM_DETOX_OCI_PLAIN_HTTP" in str(refused.value.remedy)
    monkeypatch.setenv("LLM_DETOX_OCI_PLAIN_HTTP", running.host)
    publish(model, url)


@pytest.mark.heavy
def test_an_upload_that_breaks_off_is_begun_again(
        tmp_path: Path, running: RunningRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_detox.storage.registry.pause_seconds", lambda attempt: 0.01)
    real, broken = Layer.blocks, []

    def blocks(layer: Layer) -> Iterator[bytes]:
        for block in real(layer):
            yield block
            if layer.name.endswith("safetensors") and not broken:
                broken.append(layer.name)
                raise httpx.WriteError("broken off")

    monkeypatch.setattr(Layer, "blocks", blocks)
    result = publish(make_model(tmp_path / "model"), f"oci://{running.host}/broken")
    assert broken
    pulled(result.address, tmp_path / "image")
    assert checksums.compare(unpacked(tmp_path / "image", tmp_path / "root"), result.digest)[0] == 5


def test_a_registry_that_is_away_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_detox.storage.registry.pause_seconds", lambda attempt: 0.01)
    with pytest.raises(DetoxError, match="the registry does not answer"):
        publish(make_model(tmp_path / "model"), "oci://127.0.0.1:9/nothing")


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 9 * 2**30])
def test_a_layer_is_a_tar_with_fixed_times_owners_and_rights(size: int, tmp_path: Path) -> None:
    name = "artifacts/" + "long/" * 25 + "ü.bin"
    if size > MIB:  # its size does not fit into the old header
        from llm_detox.storage.images import _headers

        with tarfile.open(fileobj=io.BytesIO(_headers(name, size)), mode="r|") as archive:
            entry = archive.next()
            while entry and not entry.isfile():
                entry = archive.next()
            assert entry
            assert entry.size == size
        return
    layer = Layer.of(name, bytes(size))
    data = b"".join(layer.blocks())
    assert len(data) == layer.blob.size
    assert f"sha256:{hashlib.sha256(data).hexdigest()}" == layer.blob.digest
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        entries = archive.getmembers()
    assert entries[0].name == "models"
    assert entries[-1].name == f"models/{name}"
    assert {(one.mtime, one.uid, one.gid, one.uname, one.gname) for one in entries} == {(0, 0, 0, "", "")}
    assert {one.mode for one in entries} == {0o755, 0o644}


def test_a_folder_of_more_files_than_an_image_has_layers_is_refused(tmp_path: Path) -> None:
    for number in range(121):
        (tmp_path / f"{number}.txt").write_text("x")
    with pytest.raises(DetoxError, match="121 files, and an image at most 120 layers"):
        publish(tmp_path, "oci://127.0.0.1:9/large")


@pytest.mark.parametrize("call", [versions, rollback, prune])
def test_what_images_have_not_is_refused_with_the_remedy(call: object) -> None:
    with pytest.raises(UsageError, match="no pointer and no list of versions") as refused:
        call("oci://registry.example/models")  # type: ignore[operator]
    assert "s3://bucket/prefix" in str(refused.value.remedy)


@pytest.mark.parametrize(("url", "message"), [
    ("oci://registry.example", "write it as oci://"), ("oci://registry.example/Team/x", "small letters"),
    ("oci://registry.example/x:-y", "is no tag"), ("oci://user:pw@registry.example/x", "not the address"),
    (f"oci://registry.example/x@sha256:{'0' * 64}", "published under a tag")])
def test_an_address_of_a_wrong_form_is_refused_before_anything_is_read(url: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        publish(tmp_path, url)
