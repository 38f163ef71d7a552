"""What the doctor reads of a cluster, and asks no deployment: kinds, rights, nodes, quotas, Secrets by their keys.

What this login may not see is a `NoRight`; what is not there is None.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from llm_detox.cluster.api import Cluster, UnknownKind
from llm_detox.cluster.objects import Manifest, Pod

# Where an installation of KServe keeps its controller: upstream's, Open Data Hub's and OpenShift AI's.
_KSERVE_NAMESPACES = ("kserve", "opendatahub", "redhat-ods-applications")
_OPTIONAL = ("PreferNoSchedule",)
_OWN_TAINTS = "node.kubernetes.io/"  # by which Kubernetes says that a node is not ready, or short of something


@dataclass(frozen=True)
class Toleration:
    """A toleration of a pod; no key means all, no effect means each."""

    key: str
    operator: str
    value: str
    effect: str

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> Toleration:
        return cls(value.get("key") or "", value.get("operator") or "Equal", value.get("value") or "",
                   value.get("effect") or "")


@dataclass(frozen=True)
class Taint:
    """A taint of a node."""

    key: str
    value: str
    effect: str

    def __str__(self) -> str:
        return f"{self.key}{f'={self.value}' if self.value else ''}:{self.effect}"

    def is_tolerated(self, by: Toleration) -> bool:
        """Kubernetes' rule for one toleration."""
        return (by.key in ("", self.key) and by.effect in ("", self.effect)
                and (by.operator == "Exists" or by.value == self.value))


@dataclass(frozen=True)
class Node:
    """A node: its labels, resource -> amount that pods may take, and the taints that keep pods away.

    `unschedulable` is one that takes no pod at all for now: it is cordoned, not ready or under pressure.
    """

    name: str
    labels: Mapping[str, str]
    allocatable: Mapping[str, str]
    taints: tuple[Taint, ...]
    unschedulable: bool

    @classmethod
    def of(cls, manifest: Mapping[str, Any]) -> Node:
        metadata, spec = manifest["metadata"], manifest.get("spec") or {}
        taints = tuple(Taint(one["key"], one.get("value") or "", one["effect"]) for one in spec.get("taints") or ()
                       if one["effect"] not in _OPTIONAL)
        return cls(metadata["name"], metadata.get("labels") or {},
                   (manifest.get("status") or {}).get("allocatable") or {}, taints,
                   bool(spec.get("unschedulable")) or any(one.key.startswith(_OWN_TAINTS) for one in taints))


@dataclass(frozen=True)
class Quota:
    """A resource quota: resource -> amount."""

    name: str
    hard: Mapping[str, str]
    used: Mapping[str, str]

    @classmethod
    def of(cls, manifest: Mapping[str, Any]) -> Quota:
        status = manifest.get("status") or {}
        return cls(manifest["metadata"]["name"], status.get("hard") or {}, status.get("used") or {})


@dataclass(frozen=True)
class Keys:
    """A Secret or ConfigMap without its values: the names of its keys, and what it is labelled and annotated with."""

    keys: frozenset[str]
    labels: Mapping[str, str]
    annotations: Mapping[str, str]

    @classmethod
    def of(cls, manifest: Mapping[str, Any]) -> Keys:
        metadata = manifest["metadata"]
        return cls(frozenset(manifest.get("data") or {}), metadata.get("labels") or {},
                   metadata.get("annotations") or {})


@dataclass(frozen=True)
class Account:
    """A ServiceAccount: the Secrets that the storage initializer finds, and those with which images are pulled."""

    secrets: tuple[str, ...]
    pull_secrets: tuple[str, ...]

    @classmethod
    def of(cls, manifest: Mapping[str, Any]) -> Account:
        secrets, pull = (tuple(one["name"] for one in manifest.get(key) or ())
                         for key in ("secrets", "imagePullSecrets"))
        return cls(secrets, pull)


@dataclass(frozen=True)
class KserveInstallation:
    """KServe's controller: its namespace, version, and the mode of models that name none; empty where it is silent."""

    namespace: str
    version: str
    mode: str


class Inspection:
    """Reads one namespace, and what of the cluster stands around it."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster, self.namespace = cluster, cluster.namespace

    def version(self) -> str:
        """The version of the API server: whether it answers, and knows this login."""
        return str((self._cluster.read("/version", "version") or {}).get("gitVersion", "of no version"))

    def kinds(self, version: str) -> set[str]:
        """The plural names of the kinds of a group's version; empty where the cluster does not know it."""
        try:
            answer = self._cluster.read(f"/apis/{version}", "kinds")
        except UnknownKind:
            answer = None
        return {str(one["name"]) for one in (answer or {}).get("resources", ())}

    def may(self, verb: str, group: str, resource: str) -> bool:
        """Whether this login has a right in the namespace."""
        review = self._cluster.send("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", "reviews", {
            "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": {"namespace": self.namespace, "verb": verb, "group": group,
                                            "resource": resource}}})
        return bool(review["status"]["allowed"])

    def secret(self, name: str) -> Keys | None:
        """A Secret, without its values."""
        live = self._one("secrets", name)
        return Keys.of(live) if live else None

    def config_map(self, name: str) -> Keys | None:
        """A ConfigMap, without its values."""
        live = self._one("configmaps", name)
        return Keys.of(live) if live else None

    def account(self, name: str) -> Account | None:
        """A ServiceAccount."""
        live = self._one("serviceaccounts", name)
        return Account.of(live) if live else None

    def pod_security(self) -> str:
        """The Pod Security standard that the namespace enforces; empty where it enforces none."""
        live = self._cluster.read(f"/api/v1/namespaces/{self.namespace}", "namespaces") or {}
        labels = (live.get("metadata") or {}).get("labels") or {}
        return str(labels.get("pod-security.kubernetes.io/enforce", ""))

    def nodes(self) -> list[Node]:
        """All nodes."""
        return [Node.of(one) for one in self._items("/api/v1/nodes", "nodes")]

    def quotas(self) -> list[Quota]:
        """The resource quotas of the namespace."""
        path = f"/api/v1/namespaces/{self.namespace}/resourcequotas"
        return [Quota.of(one) for one in self._items(path, "resourcequotas")]

    def pods(self) -> list[Pod]:
        """All pods of the namespace."""
        return [Pod.of(one) for one in self._items(f"/api/v1/namespaces/{self.namespace}/pods", "pods")]

    def kserve(self) -> KserveInstallation | None:
        """The installation of KServe; None where none is in a namespace that it is known to take."""
        for namespace in _KSERVE_NAMESPACES:
            controller = self._cluster.read(
                f"/apis/apps/v1/namespaces/{namespace}/deployments/kserve-controller-manager", "deployments")
            if controller:
                settings = self._cluster.read(
                    f"/api/v1/namespaces/{namespace}/configmaps/inferenceservice-config", "configmaps") or {}
                return KserveInstallation(namespace, _version_of(controller), _mode_of(settings))
        return None

    def _one(self, plural: str, name: str) -> Manifest | None:
        return self._cluster.read(f"/api/v1/namespaces/{self.namespace}/{plural}/{name}", plural)

    def _items(self, path: str, plural: str) -> Iterator[Manifest]:
        yield from (self._cluster.read(path, plural) or {}).get("items", ())


def _version_of(controller: Manifest) -> str:
    """By the label that Kubernetes recommends, else by the tag of the image."""
    labels = controller["metadata"].get("labels") or {}
    images = [one["image"] for one in controller["spec"]["template"]["spec"]["containers"] if one["name"] == "manager"]
    tag = images[0].rpartition("/")[2].partition("@")[0].partition(":")[2] if images else ""
    return str(labels.get("app.kubernetes.io/version") or tag)


def _mode_of(settings: Manifest) -> str:
    try:
        return str(json.loads((settings.get("data") or {}).get("deploy", "{}")).get("defaultDeploymentMode", ""))
    except ValueError:
        return ""
