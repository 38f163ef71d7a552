"""safetensors files read and written tensor by tensor, without torch and without holding a model in memory.

The format is eight bytes of header length, a JSON header (name -> dtype, shape, offsets), then the raw values.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llm_detox.errors import DetoxError

_SIZES = {"BF16": 2, "F16": 2, "F32": 4, "F64": 8}
_MAX_HEADER = 100_000_000


class TensorFile:
    """An open safetensors file: `header` maps names to dtype, shape and offsets; values are read on demand."""

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
            for entry in header.values():
                begin, end = entry["data_offsets"]
                if not 0 <= begin <= end <= len(data) - self._start:
                    raise ValueError("offsets")
        except (ValueError, KeyError, TypeError, AttributeError):
            raise DetoxError("damaged: not a whole safetensors file", place=str(path),
                             remedy="fetch or save the model again") from None

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
        raise DetoxError("damaged: the file is empty", place=str(path), remedy="fetch or save the model again")
    with path.open("rb") as file:
        return TensorFile(path, memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)))


def rewrite(source: TensorFile, target: Path, change: Callable[[str], NDArray[np.float32] | None]) -> int:
    """Write a copy in which some tensors are replaced; all others keep their bits.

    Args:
        source: the file to follow: names, types, shapes and order stay.
        target: the file to write.
        change: name -> new values in float32 (rounded to the tensor's own type), or None to keep it.

    Returns:
        how many tensors were replaced.
    """
    names = sorted(source.header, key=lambda name: source.header[name]["data_offsets"][0])
    # Readers before 4.45 refuse a file that does not say which framework wrote it.
    header = {"__metadata__": {**source.metadata, "format": source.metadata.get("format", "pt")}, **source.header}
    encoded = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    encoded += b" " * (-len(encoded) % 8)
    changed = 0
    with target.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for name in names:
            new = change(name)
            if new is None:
                file.write(source.raw(name))
                continue
            entry = source.header[name]
            if list(new.shape) != list(entry["shape"]):
                raise ValueError(f"{name}: shape {new.shape} instead of {entry['shape']}")
            file.write(narrow(new, entry["dtype"]).tobytes())
            changed += 1
    return changed


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
