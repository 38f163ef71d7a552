"""Models that the real library has published, as the folder that stands for the store of pods that run."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from filelock import FileLock

from llm_detox.storage.seaweed import Seaweed, seaweed
from tests.standins.node.kubelet import Store

BUCKET = "llm-detox"
_STORE = Store("", "https://s3.example.com:8333", "the-key", "the-secret")


@dataclass(frozen=True)
class Published:
    """Models in a store: two that work, and one of which a byte has changed since."""

    store: Store
    old: str
    new: str
    damaged: str


def published_once(folder: Path) -> Published:
    """The models in a folder that all test processes share: the first one publishes them."""
    folder.mkdir(exist_ok=True)
    noted = folder / "published.json"
    with FileLock(folder / "lock"):
        if not noted.exists():
            noted.write_text(json.dumps(asdict(publish_models(folder))), "utf-8")
    found = json.loads(noted.read_text("utf-8"))
    return Published(Store(**found.pop("store")), **found)


def publish_models(folder: Path) -> Published:
    """Publish with the real library into a real store, and keep what lies there as a folder."""
    from llm_detox.export import convert
    from llm_detox.storage import publish
    from tests.helpers.tiny import save_tiny_chat_llama

    addresses = []
    with seaweed(folder / "seaweed", buckets=[BUCKET]) as running:
        before = dict(os.environ)
        os.environ.update(running.env())
        try:
            for seed in range(3):
                save_tiny_chat_llama(folder / f"model-{seed}", seed=seed)
                convert(model=str(folder / f"model-{seed}"), output=folder / f"converted-{seed}")
                addresses.append(publish(folder / f"converted-{seed}", f"s3://{BUCKET}/models").address)
            _download(running, folder / "store")
        finally:
            os.environ.clear()
            os.environ.update(before)
    weights = folder / "store" / addresses[2].removeprefix("s3://") / "artifacts" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    return Published(replace(_STORE, folder=str(folder / "store")), *addresses)


def _download(running: Seaweed, target: Path) -> None:
    import boto3

    client = boto3.client("s3", endpoint_url=running.endpoint)
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET):
        for one in page.get("Contents", ()):
            file = target / BUCKET / one["Key"]
            file.parent.mkdir(parents=True, exist_ok=True)
            client.download_file(BUCKET, one["Key"], str(file))
