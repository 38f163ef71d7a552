"""Fetching a model that was published as an image: each layer compared with its digest, each file with the list of
checksums, into a folder beside that is renamed when it is whole."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
import time
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from llm_detox.errors import DetoxError, UsageError, clear_disk_errors
from llm_detox.recipe.addresses import ImageName
from llm_detox.runs.folders import own_folder, sha256_of, staging_of
from llm_detox.runs.locks import locked
from llm_detox.storage.images import FILE, MANIFEST_KINDS, ROOT, VERSION
from llm_detox.storage.layout import INDEX, MEBIBYTE, PUBLISH_AGAIN, Index, LocalModel
from llm_detox.storage.registry import Registry

_LARGEST_LIST = 64 * MEBIBYTE


def fetch_image(address: str, to: Path) -> LocalModel:
    """Fetch a model's files; `to` exists only when it is complete. One that holds this version already is kept.

    Args:
        address: `oci://registry/repository@sha256:...`, or with a tag.
        to: the folder to make.

    Raises:
        DetoxError: the image is not there or was not published by `llm-detox publish`, something in it is damaged, the
            registry refuses or fails, the disk is full, or `to` holds something else.
    """
    started = time.monotonic()
    try:
        name = ImageName.parse(address)
    except ValueError as error:
        raise UsageError(str(error), place=address, remedy="pass what `llm-detox publish` printed") from None
    with Registry(name) as registry, clear_disk_errors(to, "choose another folder"), locked(to):
        manifest, _ = registry.manifest(name.reference, MANIFEST_KINDS)
        layers = _layers_of(manifest, address)
        index = _index(registry, layers, manifest, address)
        if to.exists():
            _check_held(to, index)
        else:
            _fetch(registry, layers, index, to)
    return LocalModel(address, index.digest, len(index.files), index.bytes, round(time.monotonic() - started, 2))


def _layers_of(manifest: Mapping[str, Any], address: str) -> dict[str, str]:
    """File -> digest of its layer; those of a base have none."""
    try:
        layers = {str(one["annotations"][FILE]): str(one["digest"]) for one in manifest["layers"]
                  if FILE in (one.get("annotations") or {})}
    except (KeyError, TypeError, AttributeError):
        layers = {}
    if INDEX not in layers:
        raise DetoxError("the image was not published by `llm-detox publish`", place=address,
                         remedy="pass what it printed")
    return layers


def _index(registry: Registry, layers: Mapping[str, str], manifest: Mapping[str, Any], address: str) -> Index:
    place = f"{address}, {INDEX}"
    data = b"".join(_content(registry, layers[INDEX], INDEX, _LARGEST_LIST))
    index = Index.checked(_parsed(data, place), place)
    if index.digest != (manifest.get("annotations") or {}).get(VERSION) or not index.files.keys() <= layers.keys():
        raise DetoxError("the list of checksums does not belong to this image", place=place, remedy=PUBLISH_AGAIN)
    return index


def _parsed(data: bytes, place: str) -> object:
    try:
        value: object = json.loads(data)
        return value
    except (ValueError, RecursionError):
        raise DetoxError("the list of checksums is damaged (it is not JSON)", place=place,
                         remedy=PUBLISH_AGAIN) from None


def _fetch(registry: Registry, layers: Mapping[str, str], index: Index, to: Path) -> None:
    staging = staging_of(to)
    if own_folder(staging):
        shutil.rmtree(staging)
    staging.mkdir(parents=True)
    try:
        for name, file in index.files.items():
            total, path = sha256(), staging / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as written:
                for block in _content(registry, layers[name], name, file.bytes):
                    total.update(block)
                    written.write(block)
            if total.hexdigest() != file.sha256:
                raise DetoxError("the file is not the one that was published (SHA-256 differs)", place=name,
                                 remedy=PUBLISH_AGAIN)
        (staging / INDEX).write_text(index.text(), "utf-8")
        staging.rename(to)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def _content(registry: Registry, digest: str, name: str, longest: int) -> Iterator[bytes]:
    """The bytes of the only file of a layer."""
    try:
        with registry.blob(digest) as blocks:
            stream = io.BufferedReader(_Stream(blocks), MEBIBYTE)
            with tarfile.open(fileobj=stream, mode="r|") as archive:
                for entry in archive:
                    file = archive.extractfile(entry)
                    if file is None:
                        continue
                    if entry.name != f"{ROOT}/{name}" or entry.size > longest:
                        raise tarfile.ReadError("another file")
                    while block := file.read(MEBIBYTE):
                        yield block
            for _ in blocks:  # to the end, where the layer is compared with its digest
                pass
    except tarfile.TarError:
        raise DetoxError("the layer does not hold its file", place=f"{registry.name}, {name}",
                         remedy=PUBLISH_AGAIN) from None


class _Stream(io.RawIOBase):
    """Blocks as a file to read."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks, self._rest = blocks, b""

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:
        if not self._rest:
            self._rest = next(self._blocks, b"")
        size = min(len(target), len(self._rest))
        target[:size], self._rest = self._rest[:size], self._rest[size:]
        return size


def _check_held(to: Path, index: Index) -> None:
    there = {path.relative_to(to).as_posix() for path in to.rglob("*") if path.is_symlink() or not path.is_dir()}
    if there - {INDEX} != set(index.files) or any(
            sha256_of(to / name) != file.sha256 for name, file in index.files.items()):
        raise DetoxError("the folder exists and holds something else", place=str(to),
                         remedy="remove it, or choose another one")
