"""Print a CycloneDX 1.6 bill of materials: of what is installed beside this Python, or of the packages in locks.

    python sbom.py NAME [LOCK ...]

Reads the packages' own metadata, so that an image can be described while it is built, without another tool; a lock has
names, versions and the digests of the files that pip may install. `make sbom` does that for every lock.
"""

from __future__ import annotations

import json
import re
import sys
import uuid
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

_LOCKED = re.compile(r"^(?P<name>[\w.-]+)==(?P<version>\S+) \\\n(?P<files>(?: +--hash=.*\n)+)", re.MULTILINE)
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")


def bill_of_materials(name: str, locks: Sequence[Path] = ()) -> dict[str, Any]:
    """The installed distributions as a CycloneDX document; the same installation gives the same document.

    Args:
        name: of what is described.
        locks: files of pip with digests; then their packages are described instead.
    """
    components = _in_locks(locks) if locks else _installed()
    serial = uuid.uuid5(uuid.NAMESPACE_URL, name + json.dumps(components, sort_keys=True))
    return {
        "bomFormat": "CycloneDX", "specVersion": "1.6", "serialNumber": f"urn:uuid:{serial}", "version": 1,
        "metadata": {"component": {"type": "container", "name": name, "bom-ref": name}},
        "components": components,
    }


def _installed() -> list[dict[str, Any]]:
    found = {_canonical(one.metadata["Name"]): one for one in metadata.distributions()}
    return [_described(key, one) for key, one in sorted(found.items())]


def _in_locks(locks: Sequence[Path]) -> list[dict[str, Any]]:
    components = {}
    for lock in locks:
        for entry in _LOCKED.finditer(lock.read_text("utf-8")):
            component = _component(_canonical(entry["name"]), entry["version"])
            component["hashes"] = [{"alg": "SHA-256", "content": digest} for digest in _DIGEST.findall(entry["files"])]
            components[component["purl"]] = component
    return [components[purl] for purl in sorted(components)]


def _component(key: str, version: str) -> dict[str, Any]:
    purl = f"pkg:pypi/{key}@{version}"
    return {"type": "library", "name": key, "version": version, "purl": purl, "bom-ref": purl}


def _described(key: str, one: metadata.Distribution) -> dict[str, Any]:
    component = _component(key, one.version)
    if expression := one.metadata.get("License-Expression"):
        component["licenses"] = [{"expression": expression}]
    elif stated := _classified(one) or (one.metadata.get("License") or "").strip():
        component["licenses"] = [{"license": {"name": stated.splitlines()[0][:120]}}]
    return component


def _classified(one: metadata.Distribution) -> str:
    told = [text.rpartition(" :: ")[2] for text in one.metadata.get_all("Classifier") or ()
            if text.startswith("License :: OSI Approved :: ")]
    return ", ".join(told)


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    json.dump(bill_of_materials(sys.argv[1] if len(sys.argv) > 1 else "environment", [*map(Path, sys.argv[2:])]),
              sys.stdout, indent=1)
