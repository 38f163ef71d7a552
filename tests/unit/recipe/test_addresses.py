"""Addresses of every wrong form are refused where they are written: in the recipe, or before the first connection."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_detox.data.sources import fetch
from llm_detox.errors import DetoxError, UsageError
from llm_detox.recipe.addresses import check_publish_url, check_store, check_url, split_s3
from llm_detox.recipe.files import load_recipe
from llm_detox.runs.pipeline_step import pipeline_step
from llm_detox.storage import publish
from llm_detox.storage.s3 import Place, connect
from tests.conftest import REPOSITORY

DEMO = REPOSITORY / "recipes" / "smollm2-demo.yaml"

PLACES = {
    "s3://Models/x": "a bucket has 3 to 63 small letters",
    "s3://my_models/x": "not 'my_models'",
    "s3://my models/x": "not 'my models'",
    "s3://my..models/x": "a bucket has",
    "s3://my-.models/x": "a bucket has",
    "s3://-models/x": "a bucket has",
    "s3://models-/x": "a bucket has",
    "s3://ab/x": "a bucket has",
    f"s3://{'a' * 64}/x": "a bucket has",
    "s3://192.168.1.2/x": "a bucket has",
    "s3://models:9000/x": "a bucket has",
    "s3://user:secret@models/x": "a bucket has",
    "s3:///x": "begins with s3://bucket/",
    "s3://": "begins with s3://bucket/",
    "S3://models/x": "begins with s3://bucket/",
    "s3:/models/x": "begins with s3://bucket/",
    "models/x": "begins with s3://bucket/",
    "https://models/x": "begins with s3://bucket/",
    " s3://models/x": "begins with s3://bucket/",
    "s3://models/../x": "empty, . or ..",
    "s3://models/./x": "empty, . or ..",
    "s3://models/a//b": "empty, . or ..",
    "s3://models//a": "empty, . or ..",
    "s3://models/a\nb": "control character",
}
PREFIXES = {
    "s3://models/a b": "not 'a b'",
    "s3://models/a%20b": "not 'a%20b'",
    "s3://models/a?b": "not 'a[?]b'",
    "s3://models/a#b": "not 'a#b'",
    "s3://models/a\\b": "a prefix has letters",
    "s3://models/ä": "not 'ä'",
    f"s3://models/{'a' * 513}": "the prefix has 513 characters",
}


@pytest.mark.parametrize("url", PLACES)
def test_a_place_in_a_store_of_a_wrong_form_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=PLACES[url]):
        split_s3(url)
    with pytest.raises(UsageError, match=PLACES[url]):
        Place.parse(url)


@pytest.mark.parametrize("url", [*PLACES, *PREFIXES])
def test_a_wrong_publish_url_is_found_by_the_recipe_and_not_after_the_training(url: str, tmp_path: Path) -> None:
    message = {**PLACES, **PREFIXES}[url]
    with pytest.raises(UsageError, match=r"publish\.url: "):
        load_recipe(DEMO, [f"publish.url={url!r}" if "\n" not in url else 'publish.url="s3://models/a\\nb"'])
    with pytest.raises(UsageError, match=message):
        publish(tmp_path, url)


@pytest.mark.parametrize("url", ["s3://models", "s3://models/", "s3://my-models.of-2024/team_a/Detox v2"[:-3],
                                 "s3://abc/a/b/c", "s3://models/a=b,c@d"])
def test_places_of_the_right_form_are_taken(url: str) -> None:
    assert check_publish_url(url) == url
    assert load_recipe(DEMO, [f"publish.url={url}"]).publish.url == url


def test_an_image_is_a_place_to_publish_to_unless_nodes_train() -> None:
    url = "oci://registry.example:5000/team/model"
    assert load_recipe(DEMO, [f"publish.url={url}", f"publish.base_image={url}:1"]).publish.url == url
    with pytest.raises(UsageError, match=r"training\.job\.nodes above 1 needs"):
        load_recipe(DEMO, [f"publish.url={url}", "training.job.nodes=2"])
    with pytest.raises(UsageError, match=r"publish\.url: .*not the address of an image"):
        load_recipe(DEMO, ["publish.url=oci://registry.example"])


def test_a_key_to_read_may_have_blanks() -> None:
    assert split_s3("s3://data/My texts/ü.jsonl") == ("data", "My texts/ü.jsonl")


ENDPOINTS = {
    "127.0.0.1:9000": "not a URL",
    "minio.example.com": "not a URL",
    "s3://minio": "not a URL",
    "ftp://minio:9000": "not a URL",
    "https:/minio:9000": "not a URL",
    "HTTPS//minio": "not a URL",
    "https://": "the host or the port is missing",
    "https://:9000": "the host or the port is missing",
    "https://minio:": "the host or the port is missing",
    "https://minio:0": "the host or the port is missing",
    "https://minio:99999": "the port or the brackets are wrong",
    "https://minio:9000x": "the port or the brackets are wrong",
    "https://minio:-1": "the port or the brackets are wrong",
    "https://[::1": "the port or the brackets are wrong",
    "https://minio_store:9000": "an underscore is in the host's name",
    "https://mi nio:9000": "a blank, line end",
    "https://minio:9000 ": "a blank, line end",
    "https://minio:9000\n": "a blank, line end",
    " https://minio:9000": "a blank, line end",
    "https://minio:9000\r": "a blank, line end",
    "https://-minio-:9000": "the host or the port is missing",
    "https://mi..nio:9000": "the host or the port is missing",
    "https://user:secret@minio:9000": "user names and passwords do not belong",
    "https://minio:9000/bucket": "something follows",
    "https://minio:9000?x=1": "something follows",
    "https://minio:9000#x": "something follows",
    "https://https://minio": "the host or the port is missing",
}


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize("name", ["AWS_S3_ENDPOINT", "AWS_ENDPOINT_URL"])
def test_an_endpoint_of_a_wrong_form_is_named_without_its_password(endpoint: str, name: str) -> None:
    with pytest.raises(DetoxError, match=ENDPOINTS[endpoint]) as caught:
        connect({name: endpoint})
    assert str(caught.value.message).startswith(f"{name}: the store's address is wrong")
    assert "secret" not in str(caught.value)
    assert caught.value.remedy


@pytest.mark.parametrize("endpoint", ["https://minio:9000", "http://127.0.0.1:9000/", "https://[::1]:9000",
                                      "https://s3.eu-central-1.amazonaws.com", "http://minio-store.detox.svc:80"])
def test_endpoints_of_the_right_form_are_taken(endpoint: str) -> None:
    check_store({"AWS_S3_ENDPOINT": endpoint, "AWS_DEFAULT_REGION": "eu-central-1", "AWS_S3_ADDRESSING_STYLE": "path"})


@pytest.mark.parametrize(("name", "value", "message"), [
    ("AWS_DEFAULT_REGION", "eu central 1", "a region has small letters"),
    ("AWS_DEFAULT_REGION", "eu-central-1\n", "a region has small letters"),
    ("AWS_REGION", "EU", "a region has small letters"),
    ("AWS_REGION", "eu_central", "a region has small letters"),
    ("AWS_S3_ADDRESSING_STYLE", "host", "path or virtual or auto is needed"),
    ("AWS_ACCESS_KEY_ID", "AKIA\n", "a blank or a line end is in the value"),
    ("AWS_SECRET_ACCESS_KEY", " secret", "a blank or a line end is in the value"),
    ("AWS_SESSION_TOKEN", "sec\tret", "a blank or a line end is in the value"),
])
def test_settings_of_the_store_of_a_wrong_form_are_named(name: str, value: str, message: str) -> None:
    with pytest.raises(DetoxError, match=message) as caught:
        connect({name: value})
    assert name in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "AKIA" not in str(caught.value)


def test_the_first_step_of_a_pipeline_finds_wrong_settings_of_the_store(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_S3_ENDPOINT", "minio:9000")
    monkeypatch.setenv("LLM_DETOX_ERROR_FILE", str(tmp_path / "error"))
    with pytest.raises(SystemExit), pipeline_step("data", load_recipe(DEMO).model_dump_json()):
        pytest.fail("the step ran")
    assert "AWS_S3_ENDPOINT: the store's address is wrong: not a URL" in capsys.readouterr().err


@pytest.mark.parametrize("override", [
    "deploy.kserve.rest_url=https://host:99999", "deploy.kserve.rest_url=https://a b", "deploy.kserve.rest_url=host",
    "deploy.kserve.rest_url=https://user:secret@host", "deploy.kserve.rest_url=grpc://host:80",
    "deploy.kserve.grpc_url=https://host", "deploy.kserve.grpc_url=grpcs://", "deploy.kserve.grpc_url=\"grpc://a\\n\"",
])
def test_addresses_of_a_served_model_of_a_wrong_form_are_refused_by_the_recipe(override: str) -> None:
    with pytest.raises(UsageError, match=override.partition("=")[0]):
        load_recipe(DEMO, [override])


def test_a_server_may_have_a_path() -> None:
    assert check_url("https://gateway/detox/v1", ("https", "http"))


@pytest.mark.parametrize("source", [
    "package:///etc/passwd", "package://pip//etc/passwd", "package://pip/../../../../etc/passwd", "package://pip/..",
    "package://pip/pip/../../x", "package://pip", "package://pip/", "package://../pip", "package://pip/pip\\..\\x",
    "package://pip/./pip", "package://", "package://pip/pip\0",
])
def test_a_package_source_leads_nowhere_but_into_the_packages(source: str) -> None:
    with pytest.raises(DetoxError, match="not a path inside a package"):
        fetch(source, kind="dataset")


def test_a_link_that_leads_out_of_the_packages_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site, outside = tmp_path / "site", tmp_path / "outside"
    (site / "mine-1.0.dist-info").mkdir(parents=True)
    (site / "mine-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n", "utf-8")
    (site / "mine").mkdir()
    (site / "mine" / "data.txt").touch()
    outside.touch()
    (site / "mine" / "link.txt").symlink_to(outside)
    monkeypatch.syspath_prepend(str(site))
    assert fetch("package://mine/mine/data.txt", kind="dataset") == site / "mine" / "data.txt"
    with pytest.raises(DetoxError, match=r"holds no 'mine/link\.txt'"):
        fetch("package://mine/mine/link.txt", kind="dataset")


@pytest.mark.parametrize("source", ["a\0b", "x" * 5000, "~nobody-of-that-name/x"])
def test_a_name_that_no_file_can_have_is_a_missing_file(source: str) -> None:
    with pytest.raises(DetoxError, match=r"no such file or folder|cannot be fetched"):
        fetch(source, kind="dataset")
