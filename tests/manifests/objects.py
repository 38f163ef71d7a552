"""Parts of Kubernetes objects, and the definitions to check them against."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from tests.conftest import SHARED
from tests.manifests.kustomize import (
    Object,
)

needs_crds = pytest.mark.skipif(not (SHARED / "crds").is_dir(),
                                reason=f"the CRDs are not here ({SHARED / 'crds'}); set LLM_DETOX_SHARED")

PODS = {"serving.kserve.io/inferenceservice": "llm-detox"}


def containers(thing: Any) -> list[Object]:
    """All containers anywhere in an object."""
    if isinstance(thing, dict):
        own = [one for name in ("containers", "initContainers") for one in thing.get(name) or ()]
        return own + [one for name, value in thing.items() if name not in ("containers", "initContainers")
                      for one in containers(value)]
    return [one for value in thing for one in containers(value)] if isinstance(thing, list) else []


def selected(selector: Any, labels: dict[str, str]) -> bool:
    """As Kubernetes matches a label selector."""
    if any(labels.get(name) != value for name, value in selector.get("matchLabels", {}).items()):
        return False
    for one in selector.get("matchExpressions", ()):
        value = labels.get(one["key"])
        holds = {"Exists": value is not None, "In": value in one.get("values", ()),
                 "NotIn": value not in one.get("values", ())}
        if not holds[one["operator"]]:
            return False
    return True


def open_ports(objects: Iterable[Object], labels: dict[str, str], monitoring: bool = False) -> set[int]:
    """The ports that NetworkPolicies open at pods with these labels: to all but monitoring, or to monitoring."""
    policies = [one["spec"] for one in objects if one["kind"] == "NetworkPolicy"
                and selected(one["spec"]["podSelector"], labels)]
    assert any("Ingress" in policy["policyTypes"] for policy in policies), "without a policy every port is open"
    return {port["port"] for policy in policies for rule in policy.get("ingress", ()) for port in rule["ports"]
            if any("monitoring" in str(source) for source in rule["from"]) == monitoring}
