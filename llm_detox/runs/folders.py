"""The folders that travel between steps, and the shards that several runs make of one step.

A step holds the lock of its output, works in a hidden folder beside it (`.NAME.part`) and renames that in place at
the end, so a folder that exists is complete. What only an unfinished run needs is removed after that: a kill loses none
of it. The `manifest.json` says what a folder is, what it was made from, and what came out; whoever reads the folder
compares its files with that.

Shard (i, n) of a file is the i-th of n neighbouring stretches, by one rule for all steps.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_detox import __version__
from llm_detox.errors import DetoxError, UsageError, clear_disk_errors
from llm_detox.progress import say
from llm_detox.runs.artifacts import plain
from llm_detox.runs.locks import locked

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


MANIFEST = "manifest.json"
_FINGERPRINT = "fingerprint.json"
_SCHEMA = 1
_BLOCK = 2**20


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
        counts: what the manifest says of numbers.
        work_files: what only an unfinished run needs.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.result: dict[str, Any] = {}
        self.counts: dict[str, int] = {}
        self.work_files: set[Path] = set()
        self.expected: dict[str, int] = {}

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def finish(self, result: DataclassInstance) -> None:
        """Note the step's result for the manifest."""
        self.result = plain(result)

    def expect(self, name: str, records: int) -> None:
        """Say how many records a JSON lines file has to have: with another number the folder is not finished."""
        self.expected[name] = records

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
        if not isinstance(manifest, dict) or not isinstance(manifest.get("result"), dict):
            raise ValueError("not a manifest")
    except (OSError, ValueError, RecursionError):
        raise DetoxError(
            "not the finished output of a step (no readable manifest.json)", place=str(folder),
            remedy="run the step that makes it, or pass the folder that the step wrote",
        ) from None
    return manifest


def input_digest(path: Path) -> str:
    """What identifies an input: a step folder by its files, another folder by its tree, a file by its content.

    Raises:
        DetoxError: a file that a step wrote is missing, or is no longer what it wrote.
    """
    if path.is_dir():
        if (path / MANIFEST).exists():
            files = _listed(path, read_manifest(path))
            check_files(path)
            return digest_of(files)
        inside = sorted(file for file in path.rglob("*") if file.is_file())
        return digest_of({str(file.relative_to(path)): sha256_of(file) for file in inside})
    digest = sha256_of(path)
    check_sums(path.parent, {path.name: digest})
    return digest


def check_files(folder: Path, *names: str) -> None:
    """Compare the files of a step folder, or the named ones, with what the step wrote.

    Raises:
        DetoxError: one is missing or differs; or the manifest is damaged.
    """
    files = _listed(folder, read_manifest(folder))
    for name in names or files:
        path = folder / name
        _check(path, sha256_of(path) if path.is_file() else None, files.get(name))


def check_sums(folder: Path, sums: Mapping[str, str]) -> None:
    """Compare the SHA-256 of files with what the step wrote, where a step wrote them: name in the folder -> sum.

    Raises:
        DetoxError: one differs.
    """
    try:
        files = _listed(folder, json.loads((folder / MANIFEST).read_text("utf-8")))
    except (OSError, ValueError, AttributeError, RecursionError, DetoxError):  # it may be another program's
        return
    for name, digest in sums.items():
        _check(folder / name, digest, files.get(name))


def _listed(folder: Path, manifest: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Name of a file -> its checksum and size, as a manifest has them; nothing of those that list no files."""
    files = manifest.get("files", {})
    if not isinstance(files, dict) or not all(isinstance(one, dict) and "sha256" in one for one in files.values()):
        raise DetoxError("the list of files in manifest.json is damaged", place=str(folder),
                         remedy="run the step that makes the folder again")
    return files


def _check(path: Path, digest: str | None, listed: Mapping[str, Any] | None) -> None:
    if listed is not None and digest != listed["sha256"]:
        fault = "a file that the step wrote is missing" if digest is None else (
            "not what the step wrote (SHA-256 differs from its manifest.json)")
        raise DetoxError(fault, place=str(path), remedy="run the step again; data of your own belongs into a folder "
                                                        "without a manifest.json")


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
    _check_new(output)
    with clear_disk_errors(output, "choose another --output"), locked(output):
        _check_new(output)  # another run may have made it meanwhile
        fingerprint = _Fingerprint(kind, digest_of(dict(settings)), __version__,
                                   {name: input_digest(path) for name, path in inputs.items()})
        staging = staging_of(output)
        started = time.time()
        try:
            _open_staging(staging, fingerprint, resumable)
            folder = StepFolder(staging)
            yield folder
            _seal(folder, output, fingerprint, started)
        except BaseException:
            if not resumable:
                shutil.rmtree(staging, ignore_errors=True)
            raise


def _check_new(output: Path) -> None:
    if output.exists():
        raise DetoxError("the output exists already", place=str(output),
                         remedy="choose another --output, or remove this one")


def own_folder(path: Path) -> bool:
    """Whether a folder is there that an earlier run of this user left to continue in.

    Its name can be foreseen. In a folder that others may write to, somebody could have put a link there that leads
    elsewhere, or a folder of theirs.

    Raises:
        DetoxError: something else is there.
    """
    try:
        status = path.lstat()
    except FileNotFoundError:
        return False
    if stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid():
        return True
    raise DetoxError("no folder of this user lies here, and work in progress belongs here", place=str(path),
                     remedy="see who put it there, and remove it")


def _open_staging(staging: Path, fingerprint: _Fingerprint, resumable: bool) -> None:
    path, text = staging / _FINGERPRINT, json.dumps(asdict(fingerprint))
    if own_folder(staging):
        if resumable and path.is_file() and path.read_bytes() == text.encode():
            say(f"continuing the unfinished work in {staging}")
            return
        shutil.rmtree(staging)
    staging.mkdir(parents=True)
    path.write_text(text, "utf-8")


def _seal(folder: StepFolder, output: Path, fingerprint: _Fingerprint, started: float) -> None:
    """Write the manifest, put the folder in place, and remove what only the unfinished run needed."""
    for counted, expected in folder.expected.items():
        _check_count(folder / counted, expected)
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


def _check_count(path: Path, expected: int) -> None:
    with path.open("rb") as file:
        count = sum(block.count(b"\n") for block in iter(lambda: file.read(_BLOCK), b""))
    if count != expected:
        raise DetoxError(f"{count} records where {expected} were to be written", place=str(path),
                         remedy=f"remove {path.parent} and run the step again; nothing else may write there")


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
