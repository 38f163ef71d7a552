"""What the machine can do, measured and not guessed."""

from __future__ import annotations

import time


def matmul_gflops(seconds: float = 1.0) -> float:
    """Rate of float32 matrix products on this machine's CPU cores, in GFLOP/s.

    The best product of the time counts: what else the machine does for a moment is not its speed.
    """
    import torch

    size = 1024
    left, right = torch.rand(size, size), torch.rand(size, size)
    left @ right  # the first product sets up threads and caches
    best, end = float("inf"), time.perf_counter() + seconds
    while (started := time.perf_counter()) < end:
        left @ right
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best / 1e9


def peak_memory_bytes() -> int:
    """The largest resident set that this process has had."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
