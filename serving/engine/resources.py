"""What the machine, or the container's share of it, leaves for the cache and for computing."""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

_GROUP = Path("/sys/fs/cgroup")
# The cache's buffers grow by half when they are full, in rows and in columns.
_SLACK = 2.25


def cache_tokens(model: Any, fraction: float) -> int:
    """How many tokens the cache may hold in this share of the memory that is free."""
    per_token = cache_bytes(model)
    return int(free_memory(model.device) * fraction / (per_token * _SLACK)) if per_token else sys.maxsize


@torch.inference_mode()
def cache_bytes(model: Any) -> int:
    """Bytes of cache that a token takes; 0 for a model whose state does not grow."""
    output = model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=model.device), use_cache=True)
    layers = getattr(getattr(output, "past_key_values", None), "layers", ())
    kept = [getattr(layer, name, None) for layer in layers for name in ("keys", "values")]
    return sum(tensor.nbytes for tensor in kept if isinstance(tensor, torch.Tensor))


def free_memory(device: torch.device) -> int:
    """Bytes that can still be had on the device; on the CPU within the container's limit."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    limit, used = _number(_GROUP / "memory.max"), _number(_GROUP / "memory.current")
    available = _available()
    return available if limit is None or used is None else max(0, min(available, limit - used))


def usable_cores() -> int | None:
    """How many cores' time the container may use; None where that is not limited."""
    try:
        quota, period = (_GROUP / "cpu.max").read_text().split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else max(1, int(quota) // int(period))


def release() -> None:
    """Give memory that is free in this process back to the machine."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    with suppress(OSError, AttributeError):  # another C library than glibc
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _available() -> int:
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    except OSError:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    return int(lines["MemAvailable"].split()[0]) * 1024


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):  # absent, or "max"
        return None
