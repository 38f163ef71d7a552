"""What the machine can do, measured and not guessed."""

from __future__ import annotations

import time


def matmul_gflops(seconds: float = 0.4) -> float:
    """Rate of float32 matrix products on this machine's CPU cores, in GFLOP/s (about half a second)."""
    import torch

    size = 1024
    left, right = torch.rand(size, size), torch.rand(size, size)
    left @ right  # the first product sets up threads and caches
    count, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds:
        left @ right
        count += 1
    return 2 * size**3 * count / elapsed / 1e9


def peak_memory_bytes() -> int:
    """The largest resident set that this process has had."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
