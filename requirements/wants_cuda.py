"""Ends with 0 where the installed torch asks for CUDA's packages: the build for CPUs does not."""

import sys
from importlib import metadata

sys.exit(not any(one.startswith(("nvidia-", "cuda-")) for one in metadata.requires("torch") or ()))
