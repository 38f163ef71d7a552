"""What decides how floats are rounded: the processor, the instructions that torch uses on it, and torch itself."""

from __future__ import annotations

import platform
from pathlib import Path


def fingerprint() -> dict[str, str]:
    """Two machines with the same fingerprint give the same bytes."""
    import torch

    return {"processor": _processor(), "instructions": torch.backends.cpu.get_cpu_capability(),
            "torch": torch.__version__}


def _processor() -> str:
    """Vendor's name, family, model and stepping, as Linux tells them."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return platform.processor() or platform.machine()
    lines = (line.partition(":") for line in path.read_text("utf-8").partition("\n\n")[0].splitlines())
    values = {name.strip(): value.strip() for name, _, value in lines}
    return " ".join(values.get(name, "?") for name in ("model name", "cpu family", "model", "stepping"))
