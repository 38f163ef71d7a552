"""Safetensors files, read without torch and without holding a model in memory.

A file is eight bytes of header length, a JSON header (name -> dtype, shape, offsets), then the raw values.
"""

from __future__ import annotations

import json
import math
import mmap
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llm_detox.errors import DetoxError, stand_in
from llm_detox.runs.artifacts import ModelFolder

_SIZES = {"BF16": 2, "F16": 2, "F32": 4, "F64": 8}
_MAX_HEADER = 100_000_000
_HEAD = 256
AGAIN = "fetch or save the model again"


class TensorFile:
    """An open safetensors file: `header` maps names to dtype, shape and offsets; values are read on demand.

    Raises:
        DetoxError: it is not whole, or no such file.
    """

    def __init__(self, path: Path, data: memoryview) -> None:
        self.path, self._data = path, data
        try:
            length = int.from_bytes(data[:8], "little")
            if len(data) < 8 or length > min(_MAX_HEADER, len(data) - 8):
                raise ValueError("header length")
            header: dict[str, Any] = json.loads(bytes(data[8:8 + length]))
            self.metadata: dict[str, str] = header.pop("__metadata__", None) or {}
            self.header = header
            self._start = 8 + length
            _check_entries(header, len(data) - self._start)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise damaged(path, "not a whole safetensors file") from None

    def raw(self, name: str) -> memoryview:
        begin, end = self.header[name]["data_offsets"]
        return self._data[self._start + begin:self._start + end]

    def float32(self, name: str) -> NDArray[np.float32]:
        """A tensor's values, widened without loss from bfloat16, float16 or float32.

        Raises:
            DetoxError: the tensor has another type, such as that of a quantised model.
        """
        entry = self.header[name]
        if entry["dtype"] not in _SIZES:
            raise DetoxError(f"the tensor {name} is stored as {entry['dtype']}", place=str(self.path),
                             remedy="use weights in bfloat16, float16 or float32")
        raw = np.frombuffer(self.raw(name), dtype=np.uint8)
        return _widen(raw, entry["dtype"]).reshape(entry["shape"])


def open_tensors(path: Path) -> TensorFile:
    """Map a safetensors file into memory; it is unmapped with the last array that shows into it.

    Raises:
        DetoxError: it is damaged.
    """
    if path.stat().st_size == 0:
        raise DetoxError("damaged: the file is empty", place=str(path), remedy=AGAIN)
    with path.open("rb") as file:
        return TensorFile(path, memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)))


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder, in order.

    Raises:
        DetoxError: there are none, a shard is missing, or the index of the shards cannot be read.
    """
    index = ModelFolder(folder).weights_index
    names = sorted(set(weight_map(index).values())) if index.exists() else []
    if not names and ModelFolder(folder).weights.exists():
        names = [ModelFolder.weights]
    if not names:
        raise DetoxError("the model folder has no safetensors weights", place=str(folder),
                         remedy="save them: `model.save_pretrained(folder)`; pickled weights (.bin) are not read")
    files = [folder / name for name in names]
    for file in files:
        if file.parent != folder or not file.is_file():
            raise DetoxError("the model folder lacks a weight file", place=str(file), remedy="fetch the model again")
    return files


def weight_map(index: Path) -> dict[str, str]:
    """Tensor -> name of the file that holds it, from the index of a model in several files.

    Raises:
        DetoxError: the file is damaged, or no index.
    """
    names = read_object(index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) and name for name in names.values()):
        raise damaged(index, "not an index of weight files")
    return names


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a model folder.

    Raises:
        DetoxError: the file cannot be read, or holds something else.
    """
    try:
        value = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise DetoxError(f"cannot be read: {error.strerror}", place=str(path), remedy=AGAIN) from None
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"no JSON ({error})") from None
    if not isinstance(value, dict):
        raise damaged(path, "no JSON object")
    return value


def damaged(path: Path, fault: str) -> DetoxError:
    """The error about a file that is not what its name says: the fault, or what lies there in its place."""
    with path.open("rb") as file:
        head = file.read(_HEAD)
    return stand_in(head, str(path)) or DetoxError(f"damaged: {fault}", place=str(path), remedy=AGAIN)


def narrow(values: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    """float32 -> the named type, rounded to nearest even; bfloat16 as its 16 bits."""
    if dtype == "BF16":
        bits = np.ascontiguousarray(values).view(np.uint32)
        rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
        quiet = (bits >> np.uint32(16)) | np.uint32(0x40)  # rounding could carry a NaN over to an infinity
        return np.where(np.isnan(values), quiet, rounded).astype(np.uint16)
    return values.astype({"F16": np.float16, "F32": np.float32, "F64": np.float64}[dtype])


def _widen(raw: NDArray[np.uint8], dtype: str) -> NDArray[np.float32]:
    if dtype == "BF16":
        return (raw.view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)
    return raw.view({"F16": np.float16, "F32": np.float32, "F64": np.float64}[dtype]).astype(np.float32)


def _check_entries(header: dict[str, Any], size: int) -> None:
    """The tensors lie within the `size` bytes of values, fill them to the end, and are as large as their shapes say."""
    last = 0
    for entry in header.values():
        begin, end = entry["data_offsets"]
        if not 0 <= begin <= end <= size:
            raise ValueError("offsets")
        width = _SIZES.get(entry["dtype"])
        if width is not None and math.prod(entry["shape"]) * width != end - begin:
            raise ValueError("shape")
        last = max(last, end)
    if last != size:
        raise ValueError("size")
