"""Failures a user can act on: what is wrong, where, and what to do about it."""

from __future__ import annotations

import errno
import os
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

_LOGIN = re.compile(r"""(?<=://)[^/\s"'<>]*@""")  # user name and password of a URL
_FULL = {errno.ENOSPC, errno.EDQUOT}
_UNUSABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY,
             errno.ENAMETOOLONG, errno.ELOOP, errno.EFBIG, errno.EIO}
_SQLITE = {8: errno.EROFS, 10: errno.EIO, 13: errno.ENOSPC, 14: errno.EACCES}  # its result codes
_RUST = re.compile(r"\(os error (\d+)\)")  # how safetensors and tokenizers say what the system answered
_TORCH_FULL = re.compile(r"PytorchStreamWriter failed writing file|unexpected pos \d+ vs \d+")  # says no more than that
_TORCH = re.compile(r"failed with strerror: (.*)")
_NUMBERS = {os.strerror(number): number for number in errno.errorcode}
_POINTER = b"version https://git-lfs.github.com/spec/"
_PAGES = (b"<!doctype html", b"<html", b"<?xml")


def without_logins(text: str) -> str:
    """The text without the user names and passwords of the URLs in it."""
    return _LOGIN.sub("***@", text)


class DetoxError(Exception):
    """One clear error: the message names the thing, `place` where it is, `remedy` what helps.

    The command line prints it without a traceback and exits with `exit_code`.
    """

    exit_code = 1

    def __init__(self, message: str, *, place: str | None = None, remedy: str | None = None) -> None:
        super().__init__(without_logins(message))
        self.message = without_logins(message)
        self.place = without_logins(place) if place else place
        self.remedy = without_logins(remedy) if remedy else remedy

    def __str__(self) -> str:
        text = f"{self.place}: {self.message}" if self.place else self.message
        return f"{text}\n  remedy: {self.remedy}" if self.remedy else text

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows: the message alone, as the command line does."""
        return traceback.format_exception(self) if os.environ.get("LLM_DETOX_DEBUG") else [f"error: {self}"]


class UsageError(DetoxError):
    """The call itself is wrong: a bad recipe, option or argument."""

    exit_code = 2


def stand_in(head: bytes, place: str) -> DetoxError | None:
    """The error about what downloads leave in a file's place; None where the file begins otherwise."""
    if head.startswith(_POINTER):
        return DetoxError("damaged: a Git LFS pointer lies in the file's place", place=place,
                          remedy="`git lfs pull` in the folder fetches the file itself")
    if head.lstrip().lower().startswith(_PAGES):
        return DetoxError("damaged: a web page lies in the file's place", place=place,
                          remedy="download the file again; a page that asks for a login is easily saved instead")
    return None


class GateNotPassed(DetoxError):
    """The work is done, but the model did not pass the recipe's gate."""

    exit_code = 3


# Packages that a plain installation lacks, as they are imported, with the extra that has them.
_EXTRAS = {
    **dict.fromkeys(("google", "grpc", "grpc_reflection", "httpx", "markupsafe"), "client"),
    **dict.fromkeys(("boto3", "botocore", "s3transfer"), "storage"),
    **dict.fromkeys(("kserve", "kubernetes", "urllib3"), "deploy"),
    **dict.fromkeys(("fastapi", "nicegui", "starlette", "uvicorn"), "ui"),  # which has what `detector` has
    **dict.fromkeys(("httptools", "prometheus_client"), "detector"),
    "evalhub": "evalhub", "lm_eval": "harness", "mlflow": "mlflow", "py3langid": "languages",
    **dict.fromkeys((
        "accelerate", "bitsandbytes", "datasets", "gguf", "h5py", "huggingface_hub", "jinja2", "kfp", "numpy", "peft",
        "psutil", "pyarrow", "safetensors", "scipy", "tensorboard", "tokenizers", "torch", "transformers", "trl",
    ), "workbench"),
}


@contextmanager
def optional_packages() -> Iterator[None]:
    """A package that the block wants to import, and that is not installed, becomes one error that names its extra.

    Raises:
        DetoxError: that error. A missing module of Python's own or of this project is a fault, and stays what it is.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if not package or package in sys.stdlib_module_names or package in ("llm_detox", "serving"):
            raise
        extra = _EXTRAS.get(package)
        wanted = f"'llm-detox[{extra}]'" if extra else package
        raise DetoxError(f"{package} is not installed", remedy=f"pip install {wanted}") from error


def disk_error(error: BaseException, place: object, remedy: str) -> DetoxError | None:
    """What the disk refused, in one message; None where the error is of another kind.

    Libraries that write by themselves raise exceptions of their own: safetensors and tokenizers plain ones with the
    system's number in their text, SQLite with its own codes, torch with words.

    Args:
        place: what was to be written, where the error does not name a file.
        remedy: what helps.
    """
    if isinstance(error, DetoxError) or (number := _system_error(error)) is None:
        return None
    if number == errno.ENOENT and "temporary directory" in str(error):
        return DetoxError("no folder for temporary files can be written", place=os.environ.get("TMPDIR", "/tmp"),  # noqa: S108
                          remedy="free some space, or set TMPDIR to a folder that can be written")
    if number in _FULL:
        return DetoxError("the disk is full", place=str(place), remedy=f"free some space, or {remedy}")
    if number in _UNUSABLE:
        file = str(getattr(error, "filename", None) or place)
        verb = "read" if os.path.exists(file) and not os.access(file, os.R_OK) else "written"
        return DetoxError(f"cannot be {verb}: {os.strerror(number)}", place=file,
                          remedy=f"check the rights and what lies there, or {remedy}")
    return None


@contextmanager
def clear_disk_errors(place: object, remedy: str) -> Iterator[None]:
    """Within the block a disk that is full, or cannot be written, is one `DetoxError` (see `disk_error`)."""
    try:
        yield
    except Exception as error:
        if clear := disk_error(error, place, remedy):
            raise clear from error
        raise


def _system_error(error: BaseException) -> int | None:
    """The system's number of an error, or of what it was raised from."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    if (code := getattr(error, "sqlite_errorcode", None)) is not None:
        return _SQLITE.get(code & 0xFF)
    if match := _RUST.search(str(error)):
        return int(match[1])
    if _TORCH_FULL.search(str(error)):
        return errno.ENOSPC
    if match := _TORCH.search(str(error)):
        return _NUMBERS.get(match[1].strip())
    return _system_error(error.__cause__) if error.__cause__ else None
