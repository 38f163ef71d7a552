"""The volumes of a pod as folders of this machine."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.standins import Unmeasured
from tests.standins.cluster.api import Api
from tests.standins.node.enter import Mount
from tests.standins.node.environment import field

Object = dict[str, Any]
_FILE_MODE = 0o644


class MountFailed(Exception):
    """`FailedMount`, in the kubelet's words."""


def fill_volumes(pod: Object, folder: Path, address: str, api: Api) -> None:
    """Make a folder for each volume; what a volume reads is copied once.

    Raises:
        MountFailed: a Secret or ConfigMap is not there.
    """
    for volume in pod["spec"].get("volumes", ()):
        target = folder / volume["name"]
        target.mkdir(parents=True, exist_ok=True)
        [source] = [key for key in volume if key != "name"]
        try:
            _fill(source, volume[source], target, pod, address, api)
        except LookupError as error:
            raise MountFailed(f'MountVolume.SetUp failed for volume "{volume["name"]}" : {error.args[0]}') from None


def mounts_of(container: Object, folder: Path) -> list[Mount]:
    """Where the container sees the volumes."""
    result = []
    for mount in container.get("volumeMounts", ()):
        if set(mount) - {"name", "mountPath", "readOnly", "recursiveReadOnly"}:
            raise Unmeasured(f"a mount with {', '.join(mount)}")
        result.append(Mount(str(folder / mount["name"]), mount["mountPath"].rstrip("/"), mount.get("readOnly", False)))
    return result


def _fill(source: str, settings: Object, target: Path, pod: Object, address: str, api: Api) -> None:
    if source == "emptyDir":
        target.chmod(0o777)
    elif source == "projected":
        for part in settings["sources"]:
            [kind] = part
            _fill(kind, part[kind], target, pod, address, api)
    elif source in ("secret", "configMap"):
        mode = settings.get("defaultMode", _FILE_MODE)
        for path, content in _files(source, settings, pod["metadata"]["namespace"], api):
            _write(target / path, content, mode)
    elif source == "serviceAccountToken":
        _write(target / settings["path"], _token(settings, pod, api), _FILE_MODE)
    elif source == "downwardAPI":
        for item in settings["items"]:
            _write(target / item["path"], field(item["fieldRef"]["fieldPath"], pod, address).encode(), _FILE_MODE)
    else:
        raise Unmeasured(f"a volume of the kind {source}")


def _files(source: str, settings: Object, namespace: str, api: Api) -> Iterable[tuple[str, bytes]]:
    kind = {"secret": "Secret", "configMap": "ConfigMap"}[source]
    name = settings.get("secretName") or settings["name"]
    one = api.get(kind, namespace, name)
    if one is None:
        if settings.get("optional"):
            return []
        raise LookupError(f'{kind.lower()} "{name}" not found')
    data = {key: b64decode(value) if kind == "Secret" else value.encode() for key, value in one.get("data", {}).items()}
    if "items" not in settings:
        return data.items()
    missing = [item["key"] for item in settings["items"] if item["key"] not in data]
    if missing and not settings.get("optional"):
        raise LookupError(f"references non-existent {kind.lower()} key: {missing[0]}")
    return [(item["path"], data[item["key"]]) for item in settings["items"] if item["key"] in data]


def _token(settings: Object, pod: Object, api: Api) -> bytes:
    audience = {"audiences": [settings["audience"]]} if "audience" in settings else {}
    request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
               "metadata": {"name": pod["spec"].get("serviceAccountName", "default"),
                            "namespace": pod["metadata"]["namespace"]},
               "spec": {"expirationSeconds": settings.get("expirationSeconds", 3600), **audience}}
    return str(api.create(request, sub="token")["status"]["token"]).encode()


def _write(file: Path, content: bytes, mode: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    file.chmod(mode)
