"""Starts a container's program in namespaces of its own: `enter.py SPEC`, a JSON file with the fields of `Spec`.

The root folder is this machine's, seen through an overlay that nobody else sees; mounts lie over it. The program's
number on this machine is written to the file `pid`; it ends with standard input, too. Runs without site-packages.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

_LIBC = ctypes.CDLL(None, use_errno=True)
_MS_RDONLY, _MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 1, 32, 4096, 16384, 1 << 18
_NEW_NS, _NEW_UTS, _NEW_IPC, _NEW_PID, _NEW_NET = 0x20000, 0x4000000, 0x8000000, 0x20000000, 0x40000000
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_TICK_SECONDS = 0.05
_STAGE = "/.mounts"
_EMPTY = ("/tmp", "/mnt")  # noqa: S108


@dataclass(frozen=True)
class Mount:
    """A file or folder of this machine, and where the container sees it."""

    source: str
    target: str
    read_only: bool


@dataclass(frozen=True)
class Spec:
    """A container.

    Args:
        folder: an empty one for the overlay and the file `pid`.
        network: a process whose network namespace it joins.
        mounts: over the root folder.
        read_only_root: whether all but the mounts can only be read.
        user, group, more_groups: numbers.
        command, environment, cwd: of the program.
    """

    folder: str
    network: int
    mounts: list[Mount]
    read_only_root: bool
    user: int
    group: int
    more_groups: list[int]
    command: list[str]
    environment: dict[str, str]
    cwd: str

    @classmethod
    def read(cls, file: Path) -> Spec:
        value = json.loads(file.read_text("utf-8"))
        return cls(**{**value, "mounts": [Mount(**one) for one in value["mounts"]]})


def main() -> None:
    spec = Spec.read(Path(sys.argv[1]))
    with open(f"/proc/{spec.network}/ns/net", encoding="utf-8") as network:
        _call("setns", network.fileno(), _NEW_NET)
    _call("unshare", _NEW_NS | _NEW_UTS | _NEW_IPC | _NEW_PID)
    built, tell_built = os.pipe()
    init = os.fork()
    if init == 0:
        _be_init(spec, tell_built)
    os.close(tell_built)
    signal.signal(signal.SIGTERM, lambda *_: os.kill(init, signal.SIGTERM))
    if os.read(built, 1):
        Path(spec.folder, "pid").write_text(str(init), "utf-8")
    os._exit(_code(_wait_for(init)))


def _wait_for(init: int) -> int:
    """Its status; it is ended when standard input ends. (No threads: the kernel grants none after `unshare`.)"""
    while True:
        child, status = os.waitpid(init, os.WNOHANG)
        if child == init:
            return status
        if select.select([0], [], [], _TICK_SECONDS)[0]:
            os.kill(init, signal.SIGKILL)
            return os.waitpid(init, 0)[1]


def _be_init(spec: Spec, tell_built: int) -> None:
    """The first process of the namespace: when it ends, the kernel ends all others."""
    try:
        _build_root(spec)
    except OSError as error:
        print(f"cannot start the container: {error}", file=sys.stderr, flush=True)
        os._exit(128)
    program = os.fork()
    if program == 0:
        _be_program(spec)
    signal.signal(signal.SIGTERM, lambda *_: os.kill(program, signal.SIGTERM))
    os.write(tell_built, b"1")
    os.close(tell_built)
    while True:
        child, status = os.wait()
        if child == program:
            os._exit(_code(status))


def _be_program(spec: Spec) -> None:
    os.setsid()
    null = os.open("/dev/null", os.O_RDONLY)
    os.dup2(null, 0)
    os.setgroups(spec.more_groups)
    os.setgid(spec.group)
    os.setuid(spec.user)
    try:
        os.chdir(spec.cwd)
        os.execvpe(spec.command[0], spec.command, spec.environment)  # noqa: S606
    except OSError as error:
        print(f'exec: "{spec.command[0]}": {error.strerror}', file=sys.stderr, flush=True)
    os._exit(127)


def _build_root(spec: Spec) -> None:
    _mount(None, "/", None, _MS_REC | _MS_PRIVATE)
    base = Path(spec.folder, "overlay")
    base.mkdir()
    _mount("tmpfs", str(base), "tmpfs", 0)
    for name in ("upper", "work", "root"):
        (base / name).mkdir()
    root = base / "root"
    _mount("overlay", str(root), "overlay", 0, f"lowerdir=/,upperdir={base}/upper,workdir={base}/work")
    # The interpreter may lie in root's home folder, and the program is not root.
    os.chmod(root / "root", 0o755)  # noqa: S103
    _stage(spec, root)
    os.chroot(root)
    os.chdir("/")
    _make_system_folders()
    targets = sorted(enumerate(spec.mounts), key=lambda pair: len(pair[1].target))  # those inside others come later
    for number, mount in targets:
        _make_point(Path(mount.target), Path(f"{_STAGE}/{number}").is_dir())
    if spec.read_only_root:
        for name in _EMPTY:
            _mount(None, name, None, _MS_REMOUNT | _MS_RDONLY)
    for number, mount in targets:
        _place(f"{_STAGE}/{number}", mount)
    _mount("tmpfs", _STAGE, "tmpfs", _MS_RDONLY)
    if spec.read_only_root:
        _mount(None, "/", None, _MS_REMOUNT | _MS_BIND | _MS_RDONLY)


def _stage(spec: Spec, root: Path) -> None:
    """Bring the sources to where they can be reached after the change of the root folder."""
    stage = root / _STAGE[1:]
    stage.mkdir()
    _mount("tmpfs", str(stage), "tmpfs", 0)
    devices = [Mount(f"/dev/{name}", "", False) for name in _DEVICES]
    for number, mount in enumerate([*spec.mounts, *devices]):
        point = stage / (str(number) if mount.target else Path(mount.source).name)
        _make_point(point, Path(mount.source).is_dir())
        _mount(mount.source, str(point), None, _MS_BIND | _MS_REC)


def _make_system_folders() -> None:
    """/proc of the namespace, few devices, and nothing of this machine's in /tmp and /mnt."""
    _mount("proc", "/proc", "proc", 0)
    _mount("tmpfs", "/dev", "tmpfs", 0, "mode=755")
    for name in _DEVICES:
        _make_point(Path("/dev", name), folder=False)
        _place(f"{_STAGE}/{name}", Mount("", f"/dev/{name}", False))
    for name in _EMPTY:
        _mount("tmpfs", name, "tmpfs", 0, "mode=1777")


def _place(staged: str, mount: Mount) -> None:
    _mount(staged, mount.target, None, _MS_BIND | _MS_REC)
    if mount.read_only:
        _mount(None, mount.target, None, _MS_REMOUNT | _MS_BIND | _MS_RDONLY)


def _make_point(point: Path, folder: bool) -> None:
    point.parent.mkdir(parents=True, exist_ok=True)
    if folder:
        point.mkdir(exist_ok=True)
    else:
        point.touch()


def _mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    encoded = [value and value.encode() for value in (source, target, kind)]
    _call("mount", *encoded, ctypes.c_ulong(flags), data and data.encode())


def _call(name: str, *arguments: object) -> None:
    if getattr(_LIBC, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name} {arguments}: {os.strerror(number)}")


def _code(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    main()
