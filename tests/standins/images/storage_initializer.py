"""A stand-in for KServe's storage initializer: it checks its settings as the S3 client does, and copies a folder.

    storage_initializer.py s3://BUCKET/PATH FOLDER
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

_STORE = Path("/run/store.json")  # what the network would lead to: see tests.standins.node.kubelet.Store


def main() -> int:
    uri, target = sys.argv[1], Path(sys.argv[2])
    store = json.loads(_STORE.read_text("utf-8"))
    settings = _settings()
    for trouble in (_of_login(settings, store), _of_endpoint(settings, store), _of_authority(settings, store)):
        if trouble:
            print(f"Traceback (most recent call last): {trouble}", flush=True)
            return 1
    parts = urlsplit(uri)
    source = Path(store["folder"], parts.netloc, parts.path.strip("/"))
    if not source.is_dir():
        print(f"RuntimeError: Failed to fetch model. No model found in {uri}.", flush=True)
        return 1
    for file in (path for path in source.rglob("*") if path.is_file()):
        copy = target / file.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
    print(f"Successfully copied {uri} to {target}", flush=True)
    return 0


def _settings() -> dict[str, str]:
    """The connection: from the Secret's entry (Open Data Hub), or from single variables (plain KServe)."""
    if "STORAGE_CONFIG" in os.environ:
        entry = json.loads(os.environ["STORAGE_CONFIG"])
        return {"login": entry.get("access_key_id", ""), "secret": entry.get("secret_access_key", ""),
                "endpoint": entry.get("endpoint_url", ""), "region": entry.get("region", "")}
    return {"login": os.environ.get("AWS_ACCESS_KEY_ID", ""), "secret": os.environ.get("AWS_SECRET_ACCESS_KEY", ""),
            "endpoint": os.environ.get("AWS_ENDPOINT_URL", ""), "region": os.environ.get("AWS_DEFAULT_REGION", "")}


def _of_login(settings: dict[str, str], store: dict[str, Any]) -> str | None:
    if not settings["login"] or not settings["secret"]:
        return "botocore.exceptions.NoCredentialsError: Unable to locate credentials"
    if (settings["login"], settings["secret"]) != (store["access_key"], store["secret_key"]):
        return "botocore.exceptions.ClientError: An error occurred (403) when calling ListObjects: Forbidden"
    return None


def _of_endpoint(settings: dict[str, str], store: dict[str, Any]) -> str | None:
    if not store["reachable"]:
        return f"botocore.exceptions.ConnectTimeoutError: Connect timeout on endpoint URL: {settings['endpoint']}"
    if settings["endpoint"].rstrip("/") != store["endpoint"].rstrip("/"):
        return ("botocore.exceptions.EndpointConnectionError: Could not connect to the endpoint URL: "
                f"{settings['endpoint'] or 'https://s3.amazonaws.com'}")
    return None


def _of_authority(settings: dict[str, str], store: dict[str, Any]) -> str | None:
    """A store whose authority nobody knows needs the bundle, under the name that KServe looks for."""
    if not store["authority"]:
        return None
    folder = os.environ.get("CA_BUNDLE_VOLUME_MOUNT_POINT")
    bundle = Path(folder, "cabundle.crt") if folder else None
    if bundle is None or not bundle.exists() or store["authority"].strip() not in bundle.read_text("utf-8"):
        return "botocore.exceptions.SSLError: SSL validation failed: self-signed certificate in certificate chain"
    return None


if __name__ == "__main__":
    sys.exit(main())
