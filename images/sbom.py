"""Print what is installed beside this Python as a CycloneDX 1.6 bill of materials: `python sbom.py NAME`.

Reads the packages' own metadata, so that an image can be described while it is built, without another tool.
"""

from __future__ import annotations

import json
import re
import sys
import uuid
from importlib import metadata
from typing import Any


def bill_of_materials(name: str) -> dict[str, Any]:
    """The installed distributions as a CycloneDX document; the same installation gives the same document."""
    found = {_canonical(one.metadata["Name"]): one for one in metadata.distributions()}
    components = [_component(key, one) for key, one in sorted(found.items())]
    serial = uuid.uuid5(uuid.NAMESPACE_URL, name + json.dumps(components, sort_keys=True))
    return {
        "bomFormat": "CycloneDX", "specVersion": "1.6", "serialNumber": f"urn:uuid:{serial}", "version": 1,
        "metadata": {"component": {"type": "container", "name": name, "bom-ref": name}},
        "components": components,
    }


def _component(key: str, one: metadata.Distribution) -> dict[str, Any]:
    purl = f"pkg:pypi/{key}@{one.version}"
    component: dict[str, Any] = {"type": "library", "name": key, "version": one.version, "purl": purl, "bom-ref": purl}
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
    json.dump(bill_of_materials(sys.argv[1] if len(sys.argv) > 1 else "environment"), sys.stdout, indent=1)
