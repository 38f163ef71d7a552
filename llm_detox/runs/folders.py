"""The folders that travel between steps, and the shards that several runs make of one step.

A step works in a hidden folder beside its output (`.NAME.part`) and renames it in place at the end, so a
folder that exists is complete. What only an unfinished run needs is removed after that: a kill loses none of it.
The `manifest.json` says what a folder is, what it was made from, and what came out.

Shard (i, n) of a file is the i-th of n neighbouring stretches, by one rule for all steps.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_detox import __version__
from llm_detox.errors import DetoxError, UsageError
from llm_detox.progress import say
from llm_detox.runs.artifacts import plain

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


MANIFEST = "manifest.json"
_FINGERPRINT = "fingerprint.json"
_SCHEMA = 1


@dataclass(frozen=True)
class _Fingerprint:
    """What decides the content of an unfinished folder: a run with another one begins anew."""

    kind: str
    settings: str
    version: str
    inputs: Mapping[str, str]


class StepFolder:
    """A step's output while it is being written.

    Args:
        path: the folder that the step writes its files to.

    Attributes:
        result: what the manifest says came out, as plain values; `finish` sets it from a dataclass.
        counts: name of a file -> number of its records.
        work_files: what only an unfinished run needs.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.result: dict[str, Any] = {}
        self.counts: dict[str, int] = {}
        self.work_files: set[Path] = set()

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def finish(self, result: DataclassInstance) -> None:
        """Note the step's result for the manifest."""
        self.result = plain(result)

    def work_file(self, name: str) -> Path:
        """A file or folder that an interrupted run continues from, and that is no part of the finished output."""
        self.work_files.add(Path(name))
        return self.path / name


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hex, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(value: object) -> str:
    """SHA-256 of a JSON value in its canonical form, in hex."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a finished step folder.

    Raises:
        DetoxError: the folder is missing, unfinished or not a step's output.
    """
    path = folder / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        raise DetoxError(
            "not the finished output of a step (no readable manifest.json)", place=str(folder),
            remedy="run the step that makes it, or pass the folder that the step wrote",
        ) from None
    return manifest


def input_digest(path: Path) -> str:
    """What identifies an input: a step folder by its files, another folder by its tree, a file by its content."""
    if path.is_dir():
        if (path / MANIFEST).exists():
            return digest_of(read_manifest(path)["files"])
        files = sorted(file for file in path.rglob("*") if file.is_file())
        return digest_of({str(file.relative_to(path)): sha256_of(file) for file in files})
    return sha256_of(path)


def staging_of(output: Path) -> Path:
    """Where an output is while it is being written."""
    return output.parent / f".{output.name}.part"


@contextmanager
def step_folder(
    output: Path, kind: str, *, settings: Mapping[str, Any], inputs: Mapping[str, Path], resumable: bool = False
) -> Iterator[StepFolder]:
    """Write one step's output: yields a `StepFolder`, puts it in place when the block ends well.

    Args:
        output: where the finished folder will stand; it must not exist.
        kind: what it is, such as "data", "rewritten", "adapter", "evaluation".
        settings: everything that decides the content; a resumed run must have the same.
        inputs: name -> file or folder that the step reads.
        resumable: keep what is written when the step fails: the next run with the same settings and inputs
            continues where it stopped. Otherwise a failure leaves nothing.

    Raises:
        DetoxError: `output` exists, cannot be written, or the disk is full.
    """
    if output.exists():
        raise DetoxError("the output exists already", place=str(output),
                         remedy="choose another --output, or remove this one")
    fingerprint = _Fingerprint(kind, digest_of(dict(settings)), __version__,
                               {name: input_digest(path) for name, path in inputs.items()})
    staging = staging_of(output)
    started = time.time()
    try:
        _open_staging(staging, fingerprint, resumable)
        folder = StepFolder(staging)
        yield folder
        _seal(folder, output, fingerprint, started)
    except BaseException as error:
        if not resumable:
            shutil.rmtree(staging, ignore_errors=True)
        if isinstance(error, OSError) and (clear := _explain(error, output)):
            raise clear from error
        raise


def _open_staging(staging: Path, fingerprint: _Fingerprint, resumable: bool) -> None:
    path, text = staging / _FINGERPRINT, json.dumps(asdict(fingerprint))
    if staging.exists():
        if resumable and path.exists() and path.read_text("utf-8") == text:
            say(f"continuing the unfinished work in {staging}")
            return
        shutil.rmtree(staging)
    staging.mkdir(parents=True)
    path.write_text(text, "utf-8")


def _seal(folder: StepFolder, output: Path, fingerprint: _Fingerprint, started: float) -> None:
    """Write the manifest, put the folder in place, and remove what only the unfinished run needed."""
    passing = {Path(MANIFEST), Path(_FINGERPRINT), *folder.work_files}
    inside = {path: path.relative_to(folder.path) for path in sorted(folder.path.rglob("*")) if path.is_file()}
    files = {str(name): {"sha256": sha256_of(path), "bytes": path.stat().st_size}
             for path, name in inside.items() if not passing & {name, *name.parents}}
    manifest = {
        "schema": _SCHEMA, "kind": fingerprint.kind, "code_version": __version__,
        "settings_digest": fingerprint.settings, "inputs": fingerprint.inputs,
        "seconds": round(time.time() - started, 1), "counts": folder.counts,
        "result": folder.result, "files": files,
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2, ensure_ascii=False), "utf-8")
    folder.path.rename(output)
    for name in passing - {Path(MANIFEST)}:
        if (output / name).is_dir():
            shutil.rmtree(output / name, ignore_errors=True)
        else:
            (output / name).unlink(missing_ok=True)


def _explain(error: OSError, output: Path) -> DetoxError | None:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DetoxError("the disk is full", place=str(output), remedy="free some space, or choose another --output")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
        return DetoxError(f"cannot be written: {error.strerror}", place=error.filename or str(output),
                          remedy="check the rights of the folder, or choose another --output")
    return None


def cache_dir(*parts: str) -> Path:
    """`$LLM_DETOX_CACHE`, else the XDG cache folder; the folder is made."""
    root = os.environ.get("LLM_DETOX_CACHE")
    base = Path(root) if root else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "llm-detox"
    folder = base.joinpath(*parts)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


LARGEST_COUNT = 64
Shard = tuple[int, int]  # number, counted from 0, and how many there are
WHOLE: Shard = (0, 1)


def read_shard(text: str) -> Shard:
    """`2/8` -> (2, 8).

    Raises:
        UsageError: it is written otherwise, or there is no such shard.
    """
    index, slash, total = text.partition("/")
    if not (slash and index.isdecimal() and total.isdecimal() and int(index) < int(total)):
        raise UsageError(f"{text!r} is not a shard", place="--shard",
                         remedy="write i/n with i from 0 to n - 1, as in 0/4")
    return int(index), int(total)


def shard_names(count: int) -> list[str]:
    """`["0/2", "1/2"]` for 2.

    Raises:
        UsageError: less than one shard, or more than a cluster should be asked for.
    """
    if not 1 <= count <= LARGEST_COUNT:
        raise UsageError(f"{count} shards", place="shards", remedy=f"from 1 to {LARGEST_COUNT}")
    return [f"{index}/{count}" for index in range(count)]


def shard_range(count: int, shard: Shard = WHOLE) -> range:
    """Which of `count` things a shard has; the ranges of all shards put together are the whole, in order.

    Raises:
        DetoxError: the shard is not one of its count.
    """
    index, total = shard
    if not 0 <= index < total:
        raise DetoxError(f"there is no shard {index} of {total}", remedy="shards count from 0: 0/4, 1/4, 2/4, 3/4")
    return range(count * index // total, count * (index + 1) // total)
