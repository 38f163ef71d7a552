"""Failures a user can act on: what is wrong, where, and what to do about it."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager


class DetoxError(Exception):
    """One clear error: the message names the thing, `place` where it is, `remedy` what helps.

    The command line prints it without a traceback and exits with `exit_code`.
    """

    exit_code = 1

    def __init__(self, message: str, *, place: str | None = None, remedy: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.place = place
        self.remedy = remedy

    def __str__(self) -> str:
        text = f"{self.place}: {self.message}" if self.place else self.message
        return f"{text}\n  remedy: {self.remedy}" if self.remedy else text

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows: the message alone, as the command line does."""
        return traceback.format_exception(self) if os.environ.get("LLM_DETOX_DEBUG") else [f"error: {self}"]


class UsageError(DetoxError):
    """The call itself is wrong: a bad recipe, option or argument."""

    exit_code = 2


class GateNotPassed(DetoxError):
    """The work is done, but the model did not pass the recipe's gate."""

    exit_code = 3


# Packages that a plain installation lacks, as they are imported, with the extra that has them.
_EXTRAS = {
    **dict.fromkeys(("google", "grpc", "grpc_reflection", "httpx", "markupsafe"), "client"),
    **dict.fromkeys(("boto3", "botocore", "s3transfer"), "storage"),
    **dict.fromkeys(("kserve", "kubernetes", "urllib3"), "deploy"),
    **dict.fromkeys(("fastapi", "nicegui", "starlette", "uvicorn"), "ui"),
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
