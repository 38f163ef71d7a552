"""Renews the locks: each `NAME.in` pins the packages of an environment, `NAME.txt` adds the digests of their files.

    make locks

What torch itself needs on machines with GPUs is not in its own lock, for the build for CPUs names none of it:
`torch-cuda.txt` has it, and is installed only where the installed torch asks for it.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
# The release's build for CPUs (torch-2.13.0+cpu, CPython 3.11, x86-64), which the index does not list.
CPU_BUILD = "6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b"
_HEADER = "# Made by `make locks` from requirements/{source}. Do not edit.\n"
_ENTRY = re.compile(r"^(?P<name>[\w.-]+)==\S+ \\\n(?:    --hash=.*\n)+", re.MULTILINE)


def main() -> None:
    """Write every lock."""
    for source in sorted(HERE.glob("*.in")):
        entries = hashed(source)
        if source.stem == "torch":
            entries["torch"] = entries["torch"].rstrip() + f" \\\n    --hash=sha256:{CPU_BUILD}\n"
            for_gpus = {name: entry for name, entry in hashed(source, dependencies=True).items() if name not in entries}
            write(HERE / "torch-cuda.txt", source, for_gpus)
        write(source.with_suffix(".txt"), source, entries)


def hashed(source: Path, *, dependencies: bool = False) -> dict[str, str]:
    """Each pinned package, and maybe what these need, with the digests of all its files."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "lock.txt"
        platform = ["--python-platform", "x86_64-manylinux_2_28"] if dependencies else ["--no-deps"]
        subprocess.run(["uv", "pip", "compile", "--quiet", "--generate-hashes", "--no-annotate", "--no-header",
                        "--python-version", "3.11", *platform, str(source), "--output-file", str(output)], check=True)
        return {one["name"]: one[0] for one in _ENTRY.finditer(output.read_text("utf-8"))}


def write(lock: Path, source: Path, entries: dict[str, str]) -> None:
    """One lock."""
    lock.write_text(_HEADER.format(source=source.name) + "".join(entries.values()), "utf-8")


if __name__ == "__main__":
    main()
