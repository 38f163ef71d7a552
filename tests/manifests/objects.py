"""Parts of Kubernetes objects, and the definitions to check them against."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conftest import SHARED
from tests.manifests.kustomize import (
    Object,
)

needs_crds = pytest.mark.skipif(not (SHARED / "crds").is_dir(),
                                reason=f"the CRDs are not here ({SHARED / 'crds'}); set LLM_DETOX_SHARED")


def containers(thing: Any) -> list[Object]:
    """All containers anywhere in an object."""
    if isinstance(thing, dict):
        own = [one for name in ("containers", "initContainers") for one in thing.get(name) or ()]
        return own + [one for name, value in thing.items() if name not in ("containers", "initContainers")
                      for one in containers(value)]
    return [one for value in thing for one in containers(value)] if isinstance(thing, list) else []
