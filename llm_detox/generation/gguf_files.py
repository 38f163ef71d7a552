"""Models in llama.cpp's format GGUF: put together from packages, checked, and converted once to a Hugging Face folder.

A file is a header (magic, version, counts), fields (name, type, value), a table of tensors (name, dimensions, type,
offset), and the values, each tensor at a multiple of the alignment.
"""

from __future__ import annotations

import functools
import hashlib
import math
import mmap
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llm_detox.errors import DetoxError
from llm_detox.generation.tensor_files import AGAIN, damaged
from llm_detox.progress import say
from llm_detox.runs.artifacts import ModelFolder
from llm_detox.runs.cache import cache_dir, made_once
from llm_detox.runs.folders import digest_of

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # type of a field -> its bytes
_FLOATS = (6, 12)
_STRING, _ARRAY = 8, 9
_MOST_DIMENSIONS = 8


@dataclass
class _Header:
    """What is read of a header: the fields that are whole numbers, and each tensor's end behind the values' start."""

    numbers: dict[str, int] = field(default_factory=dict)
    ends: list[int] = field(default_factory=list)
    values: int = 0  # where the values start


class _Cursor:
    """Reads a mapped file from its beginning; beyond its end is an error."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data, self.at = data, 0

    def number(self, size: int) -> int:
        return int.from_bytes(self.bytes(size), "little")

    def bytes(self, size: int) -> bytes:
        start = self.skip(size)
        return self._data[start:self.at]

    def skip(self, size: int) -> int:
        start, self.at = self.at, self.at + size
        if self.at > len(self._data):
            raise ValueError("it ends early")
        return start

    def text(self) -> str:
        return self.bytes(self.number(8)).decode("utf-8")


def packaged_gguf(path: Path) -> Path | None:
    """The GGUF file of a source: the file itself, the only one of a folder, or one that packages bring in parts.

    Raises:
        DetoxError: the folder has several, or the parts do not add up.
    """
    if path.suffix == ".gguf":
        return path
    if not path.is_dir():
        return None
    if whole := join_packaged(path):
        return whole
    files = [] if ModelFolder(path).config.exists() else sorted(path.glob("*.gguf"))
    if len(files) > 1:
        raise DetoxError(f"the folder holds several GGUF files: {', '.join(file.name for file in files)}",
                         place=str(path), remedy="name one of them; one that was split must be merged first")
    return files[0] if files else None


def join_packaged(folder: Path) -> Path | None:
    """A GGUF file too large for one package, put together in the cache from the packages `NAME_part1..n`.

    The main package lists the whole file's name and SHA-256 in `data/SHA256SUMS`; None where there is no such list.
    """
    sums = folder / "data" / "SHA256SUMS"
    if not sums.exists():
        return None
    expected, name = sums.read_text("utf-8").split()[:2]
    parts = sorted(folder.parent.glob(f"{folder.name}_part*/data/{name}.part*"), key=lambda part: part.name)

    def join(target: Path) -> None:
        digest = hashlib.sha256()
        with target.open("wb") as joined:
            for part in parts:
                with part.open("rb") as file:
                    while block := file.read(2**20):
                        digest.update(block)
                        joined.write(block)
        if digest.hexdigest() != expected:
            raise DetoxError(f"the {len(parts)} parts of {name} do not add up to the file that the package names",
                             place=str(folder),
                             remedy=f"install the part packages: pip install {folder.name.replace('_', '-')}")

    return made_once(cache_dir("models") / f"{expected[:12]}-{Path(name).name}", join)


def check_gguf(path: Path) -> None:
    """Refuse a file that is not one whole model.

    Raises:
        DetoxError: it is damaged or cut, no GGUF file, or one part of several.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            header, size = _read_header(_Cursor(data)), len(data)
    except (ValueError, KeyError, RecursionError) as error:
        raise damaged(path, f"not a whole GGUF file ({error})") from None
    if (parts := header.numbers.get("split.count", 1)) > 1:
        raise DetoxError(f"one of {parts} parts of a model: the layers of the others would be random numbers",
                         place=str(path), remedy="merge them: `llama-gguf-split --merge FIRST_PART WHOLE.gguf`")
    if header.values + max(header.ends, default=0) > size:
        raise damaged(path, "not a whole GGUF file (it ends early)")


def converted(gguf: Path) -> Path:
    """A Hugging Face folder with the weights of a GGUF file in bfloat16, made once.

    Raises:
        DetoxError: the file is damaged, of an architecture that transformers does not read, or lacks weights.
    """
    size = gguf.stat().st_size
    target = cache_dir("models") / f"{gguf.stem}-{digest_of([str(gguf), size, gguf.stat().st_mtime])[:12]}"

    def convert(folder: Path) -> None:
        check_gguf(gguf)
        say(f"converting {gguf.name} to a Hugging Face folder (once; kept in {target})")
        model, tokenizer = _load(gguf)
        model.hf_quantizer = None
        model.is_quantized = False
        with suppress(AttributeError):
            del model.config.quantization_config
        model.to(torch.bfloat16).save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    return made_once(target, convert)


def _load(gguf: Path) -> tuple[Any, Any]:
    try:
        with _header_read_once():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                gguf.parent, gguf_file=gguf.name, dtype=torch.float32, trust_remote_code=False,
                output_loading_info=True)
            model, loading = loaded
            if missing := sorted(loading["missing_keys"]):
                raise incomplete(missing, str(gguf))
            return model, AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False)
    except DetoxError:
        raise
    except Exception as error:  # the libraries raise all kinds for what they do not know
        raise DetoxError(f"transformers cannot read this GGUF file ({type(error).__name__}: {error})", place=str(gguf),
                         remedy="give the model's Hugging Face folder instead") from error


def incomplete(missing: list[str], place: str) -> DetoxError:
    """The error about weights that a file or folder lacks."""
    return DetoxError(f"{len(missing)} weights of the model are missing, such as {min(missing)}: they would be random "
                      "numbers", place=place, remedy=AGAIN)


def _read_header(cursor: _Cursor) -> _Header:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    if cursor.bytes(4) != _MAGIC:
        raise ValueError("no GGUF magic")
    if (version := cursor.number(4)) not in _VERSIONS:
        raise ValueError(f"version {version}")
    header, tensors, fields = _Header(), cursor.number(8), cursor.number(8)
    for _ in range(fields):
        name, kind = cursor.text(), cursor.number(4)
        if kind in _SCALARS and kind not in _FLOATS:
            header.numbers[name] = cursor.number(_SCALARS[kind])
        else:
            _skip_value(cursor, kind)
    for _ in range(tensors):
        cursor.skip(cursor.number(8))
        dimensions = cursor.number(4)
        if dimensions > _MOST_DIMENSIONS:
            raise ValueError(f"a tensor of {dimensions} dimensions")
        elements = math.prod([cursor.number(8) for _ in range(dimensions)])
        block, width = GGML_QUANT_SIZES[GGMLQuantizationType(cursor.number(4))]
        header.ends.append(cursor.number(8) + elements // block * width)
    alignment = header.numbers.get("general.alignment", 32) or 32
    header.values = -(-cursor.at // alignment) * alignment
    return header


def _skip_value(cursor: _Cursor, kind: int) -> None:
    if kind == _STRING:
        cursor.skip(cursor.number(8))
    elif kind == _ARRAY:
        item, count = cursor.number(4), cursor.number(8)
        if item in _SCALARS:
            cursor.skip(count * _SCALARS[item])
        else:
            for _ in range(count):
                _skip_value(cursor, item)
    else:
        cursor.skip(_SCALARS[kind])


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
