"""A model as an OCI image (a modelcar): its files below /models, one layer a file, without a container engine.

The same folder gives the same digest: layers are plain tar with fixed times, owners and rights in the order of the
names, and the configuration holds no time. A layer is not compressed, for weights do not get smaller; so its digest is
that of its content, and a file that the registry has is found there. The image holds the list of checksums that a
version in S3 has, and the pod compares it in the same way.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from llm_detox.errors import DetoxError, UsageError, clear_disk_errors
from llm_detox.progress import Task, say, task
from llm_detox.recipe.addresses import ImageName, check_publish_url
from llm_detox.runs.folders import check_sums
from llm_detox.storage.layout import INDEX, INNER_INDEX, MEBIBYTE, Index, IndexedFile, Publication, files_to_publish
from llm_detox.storage.registry import Registry

ROOT = "models"  # where KServe looks for the model in an image
FILE, VERSION = "llm-detox/file", "llm-detox/version"  # annotations: of a layer its file, of the image the content
MANIFEST_KIND = "application/vnd.oci.image.manifest.v1+json"
LAYER_KIND = "application/vnd.oci.image.layer.v1.tar"
_CONFIG_KIND = "application/vnd.oci.image.config.v1+json"
_INDEX_KINDS = ("application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json")
MANIFEST_KINDS = (MANIFEST_KIND, "application/vnd.docker.distribution.manifest.v2+json")
_DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
_EPOCH = "1970-01-01T00:00:00Z"
_MOST_LAYERS = 120  # container runtimes end at 127 or 128
_INNER = INNER_INDEX.removesuffix(INDEX)
_BLOCK, _READ = 512, MEBIBYTE
_THREADS = 4


@dataclass(frozen=True)
class Blob:
    """What a manifest names: a media type, a digest and a size in bytes."""

    kind: str
    digest: str
    size: int

    def descriptor(self, annotations: dict[str, str] | None = None) -> dict[str, object]:
        plain: dict[str, object] = {"mediaType": self.kind, "digest": self.digest, "size": self.size}
        return plain | ({"annotations": annotations} if annotations else {})


@dataclass(frozen=True)
class Layer:
    """A tar of one file: what comes before its content, the content (a file, or bytes), and zeros.

    Args:
        name: of the file, below /models.
        head: the tar's headers of the folders and the file.
        content: where the bytes come from.
        file: its SHA-256 and size.
        blob: of the whole layer.
    """

    name: str
    head: bytes
    content: Path | bytes
    file: IndexedFile
    blob: Blob

    @classmethod
    def of(cls, name: str, content: Path | bytes) -> Layer:
        """Reads the content once, for both sums."""
        size = content.stat().st_size if isinstance(content, Path) else len(content)
        head, own, whole = _headers(name, size), hashlib.sha256(), hashlib.sha256()
        whole.update(head)
        count = 0
        for block in _blocks(content):
            own.update(block)
            whole.update(block)
            count += len(block)
        if count != size:
            raise DetoxError("the file changed while it was read", place=name, remedy="publish when nothing writes it")
        whole.update(_zeros(size))
        blob = Blob(LAYER_KIND, f"sha256:{whole.hexdigest()}", len(head) + size + len(_zeros(size)))
        return cls(name, head, content, IndexedFile(own.hexdigest(), size), blob)

    def blocks(self) -> Iterator[bytes]:
        """The bytes of the layer."""
        yield self.head
        yield from _blocks(self.content)
        yield _zeros(self.file.bytes)


@dataclass(frozen=True)
class Base:
    """The image below the model's layers."""

    name: ImageName
    layers: tuple[Blob, ...]
    config: Mapping[str, Any]

    @classmethod
    def read(cls, address: str) -> Base:
        """Of a single image or, of one for several architectures, that for linux/amd64.

        Raises:
            DetoxError: it is not there, or of a kind that cannot be put below others.
        """
        name = ImageName.parse(address)
        with Registry(name) as registry:
            manifest, kind = registry.manifest(name.reference, (*MANIFEST_KINDS, *_INDEX_KINDS))
            if kind in _INDEX_KINDS:
                manifest, kind = registry.manifest(_amd64(manifest, address), MANIFEST_KINDS)
            try:
                with registry.blob(manifest["config"]["digest"]) as content:
                    config = json.loads(b"".join(content))
                layers = tuple(Blob(_oci_kind(one["mediaType"]), one["digest"], one["size"])
                               for one in manifest["layers"])
                if len(config["rootfs"]["diff_ids"]) != len(layers):
                    raise ValueError
            except (KeyError, TypeError, ValueError):
                raise DetoxError("the base image is none of container layers", place=address,
                                 remedy="take an image that a container engine runs, such as a minimal one with a shell"
                                 ) from None
        return cls(name, layers, config)


def publish_image(folder: Path, url: str, base_image: str | None = None) -> Publication:
    """Build the image of a folder and send it, the manifest last; what the registry has is not sent again.

    Args:
        folder: what to publish, such as the output of `convert`.
        url: `oci://registry/repository[:tag]`; without a tag it is the digest of the content.
        base_image: the image to put it on; None makes one of the model alone.

    Raises:
        DetoxError: the folder is missing, empty or no longer what its step wrote, it has too many files, or the
            registry refuses or fails.
    """
    started, name = time.monotonic(), _publishable(url)
    with clear_disk_errors(folder, "publish another folder"):
        layers = _layers(folder)
        index = Index({one.name: one.file for one in layers})
        check_sums(folder, {one.name: one.file.sha256 for one in layers})
        layers += [Layer.of(path, index.text().encode()) for path in _lists(index)]
        base = Base.read(base_image) if base_image else None
        tag = name.tag or index.digest
        with Registry(name, push=True) as registry:
            sent, copied = _send(registry, layers, base)
            config = _config(layers, base)
            held = Blob(_CONFIG_KIND, f"sha256:{hashlib.sha256(config).hexdigest()}", len(config))
            if not registry.has_blob(held.digest):
                registry.send_blob(held.digest, held.size, lambda: [config])
            digest = registry.put_manifest(_manifest(layers, base, held, index.digest), MANIFEST_KIND, tag)
    address = ImageName(name.registry, name.repository, digest=digest)
    kept = len(layers) - sent
    say(f"published {address}: {sent} files sent, {kept} already there, {copied} layers of the base brought")
    return Publication(str(address), str(ImageName(name.registry, name.repository, tag)), index.digest,
                       len(index.files), index.bytes, sent, copied, kept, round(time.monotonic() - started, 2))


def _publishable(url: str) -> ImageName:
    try:
        return ImageName.parse(check_publish_url(url))
    except ValueError as error:
        raise UsageError(str(error), place=url, remedy="write it as oci://registry/repository[:tag]") from None


def _layers(folder: Path) -> list[Layer]:
    paths = files_to_publish(folder)
    if len(paths) > _MOST_LAYERS:
        raise DetoxError(f"the folder has {len(paths)} files, and an image at most {_MOST_LAYERS} layers",
                         place=str(folder), remedy="publish it to s3://bucket/prefix")
    with ThreadPoolExecutor(_THREADS) as pool:  # hashing releases the interpreter lock
        return list(pool.map(Layer.of, paths, paths.values()))


def _lists(index: Index) -> list[str]:
    """Where the list of checksums lies: beside the files, and in the Hugging Face folder of a Caikit model."""
    return [*([INNER_INDEX] if any(name.startswith(_INNER) for name in index.files) else []), INDEX]


def _send(registry: Registry, layers: list[Layer], base: Base | None) -> tuple[int, int]:
    """Bring what is missing; returns how many files were sent, and how many layers of the base were brought."""
    missing = {one.blob.digest: one for one in layers}  # two files of one content are two layers: the names differ
    with ThreadPoolExecutor(_THREADS) as pool:
        for digest, there in zip(list(missing), pool.map(registry.has_blob, list(missing)), strict=True):
            if there:
                del missing[digest]
    total = sum(one.blob.size for one in missing.values())
    copied = _bring_base(registry, base) if base else 0
    with (task("publishing", max(1, total // MEBIBYTE), "MiB") as work, ThreadPoolExecutor(_THREADS) as pool):
        counted = _Counted(work)
        for done in [pool.submit(registry.send_blob, one.blob.digest, one.blob.size, counted.watching(one))
                     for one in missing.values()]:
            done.result()
    return len(missing), copied


def _bring_base(registry: Registry, base: Base) -> int:
    """Take the base's layers from beside, where the registry holds them, or bring them over."""
    own = base.name.registry == registry.name.registry
    count = 0
    with Registry(base.name) as source:
        for layer in base.layers:
            if registry.has_blob(layer.digest):
                continue

            def content(digest: str = layer.digest) -> Iterator[bytes]:
                with source.blob(digest) as blocks:
                    yield from blocks

            registry.send_blob(layer.digest, layer.size, content, mount_from=base.name.repository if own else "")
            count += 1
    return count


class _Counted:
    """Bytes of all threads, shown in mebibytes."""

    def __init__(self, work: Task) -> None:
        self._work, self._bytes, self._shown = work, 0, 0

    def watching(self, layer: Layer) -> Any:
        def blocks() -> Iterator[bytes]:
            for block in layer.blocks():
                yield block
                self._bytes += len(block)
                if (done := self._bytes // MEBIBYTE - self._shown) > 0:
                    self._shown += done
                    self._work.advance(done)
        return blocks


def _config(layers: list[Layer], base: Base | None) -> bytes:
    """The image's configuration: that of the base, with our layers after its own."""
    below = base.config if base else {}
    history = [{"created": _EPOCH, "created_by": f"llm-detox publish: /{ROOT}/{one.name}"} for one in layers]
    value = {"created": _EPOCH, "architecture": below.get("architecture", "amd64"), "os": below.get("os", "linux"),
             "config": below.get("config") or {},
             "rootfs": {"type": "layers", "diff_ids": [*(below["rootfs"]["diff_ids"] if base else ()),
                                                       *(one.blob.digest for one in layers)]},
             "history": [*(below.get("history") or ()), *history]}
    return _canonical(value)


def _manifest(layers: list[Layer], base: Base | None, config: Blob, version: str) -> bytes:
    return _canonical({
        "schemaVersion": 2, "mediaType": MANIFEST_KIND, "config": config.descriptor(),
        "layers": [*(one.descriptor() for one in (base.layers if base else ())),
                   *(one.blob.descriptor({FILE: one.name}) for one in layers)],
        "annotations": {VERSION: version}})


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _headers(name: str, size: int) -> bytes:
    """The tar headers of a file and of the folders above it; PAX, for long names and large files."""
    path = PurePosixPath(ROOT) / name
    entries = []
    for parent in reversed(path.parents[:-1]):
        entry = tarfile.TarInfo(f"{parent}/")
        entry.type, entry.mode = tarfile.DIRTYPE, 0o755
        entries.append(entry)
    file = tarfile.TarInfo(str(path))
    file.size, file.mode = size, 0o644
    return b"".join(one.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict") for one in (*entries, file))


def _blocks(content: Path | bytes) -> Iterator[bytes]:
    with ExitStack() as stack:
        file = stack.enter_context(content.open("rb") if isinstance(content, Path) else io.BytesIO(content))
        while block := file.read(_READ):
            yield block


def _zeros(size: int) -> bytes:
    """To the end of the last block, and the two empty ones that end a tar."""
    return b"\0" * (-size % _BLOCK + 2 * _BLOCK)


def _amd64(index: Mapping[str, Any], address: str) -> str:
    for one in index.get("manifests", ()):
        platform = one.get("platform") or {}
        if (platform.get("os"), platform.get("architecture")) == ("linux", "amd64"):
            return str(one["digest"])
    raise DetoxError("the base image has none for linux/amd64", place=address,
                     remedy="name the image for your nodes by its digest")


def _oci_kind(kind: str) -> str:
    """Docker's names of the same bytes."""
    if kind.startswith(_DOCKER_LAYER):
        return LAYER_KIND + ("+gzip" if kind.endswith("gzip") else "")
    if not kind.startswith(LAYER_KIND):
        raise ValueError(kind)
    return kind
