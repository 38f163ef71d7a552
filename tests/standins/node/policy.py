"""Who gets in, and where pods get out, by the NetworkPolicies of a namespace: pure functions on their YAML values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.standins import Unmeasured

Object = dict[str, Any]


@dataclass(frozen=True)
class Caller:
    """A pod that connects to another: its namespace, and the labels of both."""

    namespace: str
    labels: Mapping[str, str] = field(default_factory=dict)
    namespace_labels: Mapping[str, str] = field(default_factory=dict)


def admits(policies: Iterable[Object], pod: Object, port: int, caller: Caller) -> bool:
    """Whether a connection gets in: where no policy selects the pod, or one of those that do has a rule for it."""
    rules = [one["spec"].get("ingress", ()) for one in policies if _selects(one, pod, "Ingress")]
    return not rules or any(_has_port(rule, port) and _is_from(rule, caller, pod["metadata"]["namespace"])
                            for group in rules for rule in group)


def lets_out(policies: Iterable[Object], pod: Object, port: int) -> bool:
    """Whether the pod reaches this port of a server outside of the cluster."""
    rules = [one["spec"].get("egress", ()) for one in policies if _selects(one, pod, "Egress")]
    return not rules or any(_has_port(rule, port) and "to" not in rule for group in rules for rule in group)


def _selects(policy: Object, pod: Object, direction: str) -> bool:
    spec = policy["spec"]
    kinds = spec.get("policyTypes") or ["Ingress", *(["Egress"] if "egress" in spec else ())]
    return direction in kinds and matches(spec.get("podSelector", {}), pod["metadata"].get("labels", {}))


def _has_port(rule: Object, port: int) -> bool:
    return "ports" not in rule or any(one.get("port") == port and one.get("protocol", "TCP") == "TCP"
                                      for one in rule["ports"])


def _is_from(rule: Object, caller: Caller, namespace: str) -> bool:
    return "from" not in rule or any(_is_peer(peer, caller, namespace) for peer in rule["from"])


def _is_peer(peer: Object, caller: Caller, namespace: str) -> bool:
    if set(peer) - {"podSelector", "namespaceSelector"}:
        raise Unmeasured(f"a peer with {', '.join(peer)}")
    if "namespaceSelector" in peer:
        right_place = matches(peer["namespaceSelector"], caller.namespace_labels)
    else:
        right_place = caller.namespace == namespace
    return right_place and matches(peer.get("podSelector", {}), caller.labels)


def matches(selector: Object, labels: Mapping[str, str]) -> bool:
    """Whether a label selector takes these labels; an empty one takes all."""
    if any(labels.get(key) != value for key, value in selector.get("matchLabels", {}).items()):
        return False
    for one in selector.get("matchExpressions", ()):
        value = labels.get(one["key"])
        holds = {"Exists": value is not None, "DoesNotExist": value is None,
                 "In": value in one.get("values", ()), "NotIn": value not in one.get("values", ())}[one["operator"]]
        if not holds:
            return False
    return True
