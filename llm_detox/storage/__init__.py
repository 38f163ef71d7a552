"""Models in S3, or as images: published under their content address, fetched with checksums, never half a model.

    <url>/<digest>/...              one version: the files, and `checksums.json` sent after all of them
    <url>/latest.json               the pointer, moved last; it lists the versions

The store is described by the usual environment: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN,
AWS_S3_ENDPOINT, AWS_DEFAULT_REGION and AWS_CA_BUNDLE.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from llm_detox.recipe.addresses import OCI

if TYPE_CHECKING:
    from llm_detox.storage.layout import LocalModel, Publication


def publish(folder: Path, url: str, base_image: str | None = None) -> Publication:
    """Publish a model folder to S3 or as an image: see `llm_detox.storage.publishing`, `llm_detox.storage.images`.

    Args:
        folder: what `convert` wrote.
        url: `s3://bucket/prefix`, or `oci://registry/repository[:tag]`.
        base_image: what an image is put on; S3 has no use for it.
    """
    if url.startswith(OCI):
        from llm_detox.storage.images import publish_image

        return publish_image(folder, url, base_image)
    from llm_detox.storage.publishing import publish as run  # boto3 loads only where S3 is used

    return run(folder, url)


def fetch_model(address: str, to: Path) -> LocalModel:
    """Fetch a published model, verified: see `llm_detox.storage.fetch.fetch_model`, and `image_fetch` for images."""
    if address.startswith(OCI):
        from llm_detox.storage.image_fetch import fetch_image

        return fetch_image(address, to)
    from llm_detox.storage.fetch import fetch_model as run

    return run(address, to)


def fetch_source(url: str) -> Path:
    """An object or prefix as a local path in the cache: see `llm_detox.storage.fetch.fetch_source`."""
    from llm_detox.storage.fetch import fetch_source as run

    return run(url)
