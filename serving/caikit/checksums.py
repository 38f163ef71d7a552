"""Compare a published model folder with the checksums that `llm-detox publish` put into it.

    python checksums.py FOLDER COMMAND [ARGUMENT ...]

becomes the command when the folder holds what was published. Otherwise it names the file that differs, also in the
pod's termination message, and exits with 1, so that nothing is served. LLM_DETOX_VERSION in the environment, where it
is not empty, is the version that was asked for: the list of checksums must be that version's.

It runs in images of others, so it needs nothing but Python. The format is that of `llm_detox/storage/layout.py`.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn

INDEX = "checksums.json"
TERMINATION_LOG = Path("/dev/termination-log")  # what Kubernetes shows as the reason
_INNER = "artifacts/"
_DIGEST_CHARS = 32
_BLOCK = 4 * 2**20
_THREADS = 4
_IMAGE = "sha256:"  # how the digest of an image begins, which names the version of a model that came as one
_ASYNC, _WAIT_SECONDS = "MODEL_INIT_MODE", 300.0


class NotAsPublished(Exception):
    """The folder is not what was published; the message says which file, and what helps."""

    def __init__(self, place: Path, fault: str, remedy: str) -> None:
        super().__init__(f"{place}: {fault}\n  remedy: {remedy}")


_FETCH_AGAIN = "delete the pod, the next one fetches the model again; if it stays so, publish the model again"


def compare(folder: Path, version: str = "") -> tuple[int, int]:
    """Read every file of a model folder once, and compare it with the list in the folder.

    Args:
        folder: a whole published version, or the `artifacts` of one; both hold the same list.
        version: whose list it has to be, the last part of the published address; empty where nobody knows. The digest
            of an image covers the list in it, and the node has compared it when it pulled the image.

    Returns:
        How many files were compared, and their bytes.

    Raises:
        NotAsPublished: there is no list, it is another version's, or a file is missing, too many, or changed.
    """
    published = _listed(folder / INDEX)
    if version and not version.startswith(_IMAGE) and _digest(published) != version:
        raise NotAsPublished(folder / INDEX, f"the checksums are not those of the version {version}", _FETCH_AGAIN)
    wanted = {folder / name: checksum for name, checksum in _within(folder, published).items()}
    lists = {folder / INDEX, folder / _INNER / INDEX}
    there = {path for path in folder.rglob("*") if path not in lists and (path.is_symlink() or not path.is_dir())}
    for path in sorted(there - set(wanted)):
        raise NotAsPublished(path, "the file was not published with the model", _FETCH_AGAIN)
    for path in sorted(path for path in wanted if path not in there or not path.is_file()):
        raise NotAsPublished(path, "the file is missing", _FETCH_AGAIN)
    with ThreadPoolExecutor(_THREADS) as pool:  # hashing and reading release the interpreter lock
        sums = dict(zip(wanted, pool.map(_sha256, wanted), strict=True))
    for path, checksum in wanted.items():
        if sums[path] != checksum:
            raise NotAsPublished(path, "the file is not the one that was published (SHA-256 differs)", _FETCH_AGAIN)
    return len(wanted), sum(path.stat().st_size for path in wanted)


def require(folder: Path, version: str = "") -> None:
    """`compare`, with a line for the log; where it fails the process ends with 1."""
    started = time.monotonic()
    _wait_for(folder)
    try:
        files, size = compare(folder, version)
    except NotAsPublished as error:
        _end(str(error))
    except OSError as error:
        _end(f"{folder}: the model cannot be read: {error}\n  remedy: see the log of the storage initializer")
    print(f"{folder}: {files} files, {size / 2**20:.0f} MiB, are what was published "
          f"({time.monotonic() - started:.1f} s)", file=sys.stderr, flush=True)


def _wait_for(folder: Path) -> None:
    """A modelcar, the container of a model that is an image, links the folder a little later than we start."""
    until = time.monotonic() + _WAIT_SECONDS
    while os.environ.get(_ASYNC) == "async" and not folder.exists() and time.monotonic() < until:
        time.sleep(0.2)


def _listed(index: Path) -> dict[str, str]:
    """Relative path -> SHA-256 in hex."""
    try:
        files = json.loads(index.read_text("utf-8"))["files"]
        checksums = {str(name): str(file["sha256"]) for name, file in files.items()}
        _digest(checksums)  # a name that is no text has none
        return checksums
    except FileNotFoundError:
        raise NotAsPublished(index, "the model has no list of checksums",
                             "serve what `llm-detox publish` printed as its address") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise NotAsPublished(index, "the list of checksums is damaged", _FETCH_AGAIN) from None


def _within(folder: Path, published: dict[str, str]) -> dict[str, str]:
    """The part of a version's files that lies in the folder: all, or those of `artifacts`."""
    if (folder / _INNER).is_dir() or not any(name.startswith(_INNER) for name in published):
        return published
    return {name.removeprefix(_INNER): checksum for name, checksum in published.items() if name.startswith(_INNER)}


def _digest(published: dict[str, str]) -> str:
    """The version's address, which follows from names and checksums alone."""
    canonical = json.dumps(published, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:_DIGEST_CHARS]


def _sha256(path: Path) -> str:
    total = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while block := file.read(_BLOCK):
            total.update(block)
    return total.hexdigest()


def _end(message: str) -> NoReturn:
    print(message, file=sys.stderr)
    if TERMINATION_LOG.exists():
        TERMINATION_LOG.write_text(message, "utf-8")
    sys.exit(1)


def main() -> None:
    """Compare, then become the command."""
    _, folder, *command = sys.argv
    require(Path(folder), os.environ.get("LLM_DETOX_VERSION", ""))
    os.execvp(command[0], command)  # noqa: S606 - the manifest's own


if __name__ == "__main__":
    main()
