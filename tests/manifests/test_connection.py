"""The connection: one file of a user, from which everybody who reads S3 gets what he needs."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_detox.cluster.train_job import CA_FILE
from tests.manifests import strict
from tests.manifests.kustomize import connection, copied, pick, refusal
from tests.manifests.objects import needs_crds


@needs_crds
def test_the_connection_passes_and_takes_its_annotations_from_one_file(tmp_path: Path) -> None:
    secret = pick(connection(tmp_path), "Secret")
    strict.check(secret)
    notes = secret["metadata"]["annotations"]
    assert notes["serving.kserve.io/s3-endpoint"] == "seaweedfs.llm-detox.svc.cluster.local:8333"
    assert notes["serving.kserve.io/s3-region"] == "us-east-1"
    assert notes["serving.kserve.io/s3-verifyssl"] == "1"
    assert {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_S3_ENDPOINT", "AWS_S3_BUCKET"} <= set(secret["data"])


@pytest.mark.parametrize(("endpoint", "address", "https"), [
    ("http://minio:9000", "minio:9000", "0"), ("https://s3.example.com", "s3.example.com", "1"),
    ("https://s3.example.com/", "s3.example.com", "1")])
def test_whether_s3_is_asked_over_tls_follows_from_its_address(
        endpoint: str, address: str, https: str, tmp_path: Path) -> None:
    notes = pick(connection(tmp_path, AWS_S3_ENDPOINT=endpoint), "Secret")["metadata"]["annotations"]
    assert (notes["serving.kserve.io/s3-endpoint"], notes["serving.kserve.io/s3-usehttps"]) == (address, https)


def test_an_address_without_a_scheme_is_refused(tmp_path: Path) -> None:
    manifests = copied(tmp_path, AWS_S3_ENDPOINT="minio:9000")
    assert "minio:9000" in refusal(tmp_path / "mine", "connection", [], manifests)


@needs_crds
def test_an_own_authority_is_one_file_for_the_storage_initializer_and_for_the_steps(tmp_path: Path) -> None:
    """KServe reads the key cabundle.crt, the steps of pipelines and of training ca-bundle.crt."""
    objects = connection(tmp_path, ["custom-ca"])
    for thing in objects:
        strict.check(thing)
    bundle = pick(objects, "ConfigMap")
    assert bundle["data"] == {"cabundle.crt": "PEM", Path(CA_FILE).name: "PEM"}
    notes = pick(objects, "Secret")["metadata"]["annotations"]
    assert notes["serving.kserve.io/s3-cabundle-configmap"] == bundle["metadata"]["name"]
