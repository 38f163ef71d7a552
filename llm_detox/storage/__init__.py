"""Models in S3: published under their content address, fetched with checksums, never half a model.

    <url>/<digest>/...              one version: the files, and `checksums.json` sent after all of them
    <url>/latest.json               the pointer, moved last; it lists the versions

The store is described by the usual environment: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN,
AWS_S3_ENDPOINT, AWS_DEFAULT_REGION and AWS_CA_BUNDLE.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llm_detox.storage.fetch import LocalModel
    from llm_detox.storage.publishing import Publication


def publish(folder: Path, url: str) -> Publication:
    """Publish a model folder: see `llm_detox.storage.publishing`."""
    from llm_detox.storage.publishing import publish as run  # boto3 loads only where S3 is used

    return run(folder, url)


def fetch_model(address: str, to: Path) -> LocalModel:
    """Fetch a published model, verified: see `llm_detox.storage.fetch.fetch_model`."""
    from llm_detox.storage.fetch import fetch_model as run

    return run(address, to)


def fetch_source(url: str) -> Path:
    """An object or prefix as a local path in the cache: see `llm_detox.storage.fetch.fetch_source`."""
    from llm_detox.storage.fetch import fetch_source as run

    return run(url)
