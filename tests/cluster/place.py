"""A namespace of the API server in which the stand-ins work: KServe of one platform, and a kubelet."""

from __future__ import annotations

import itertools
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.cluster.server import ApiServer, moved
from tests.standins.cluster.admission import PLATFORM_LABEL
from tests.standins.cluster.api import Api
from tests.standins.cluster.certificates import Authority
from tests.standins.cluster.kserve import KServe
from tests.standins.cluster.kubelet import Kubelet
from tests.standins.cluster.openshift import OpenShift
from tests.standins.cluster.scripted import ScriptedKubelet
from tests.standins.kserve.platform import OPENDATAHUB, Flavour

Object = dict[str, Any]
CONNECTION_SECRET = "llm-detox-s3"
_numbers = itertools.count(1)
_CONNECTION = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "key", "AWS_S3_ENDPOINT": "https://s3.example.com",
               "AWS_DEFAULT_REGION": "us-east-1", "AWS_S3_BUCKET": "llm-detox"}


@dataclass(frozen=True)
class Cloud:
    """What all namespaces of a session share: the API server with the webhooks, and the platform's authority."""

    server: ApiServer
    api: Api
    authority: Authority


@dataclass(frozen=True)
class Place:
    """A namespace with its platform."""

    cloud: Cloud
    namespace: str
    flavour: Flavour

    @property
    def api(self) -> Api:
        return self.cloud.api

    def apply(self, objects: Iterable[Object], *, manager: str = "test") -> None:
        """Send objects as `kubectl apply --server-side` does, into this namespace."""
        for one in moved(objects, self.namespace):
            self.api.set_fields(one, manager)

    def service(self, name: str = "llm-detox") -> Object | None:
        """The InferenceService."""
        return self.api.get("InferenceService", self.namespace, name)

    def deployment(self, name: str = "llm-detox") -> Object | None:
        """The predictor's Deployment."""
        return self.api.get("Deployment", self.namespace, f"{name}-predictor")

    def pods(self, name: str = "llm-detox") -> list[Object]:
        """The pods of a model that are not being removed."""
        pods = self.api.list("Pod", self.namespace, f"serving.kserve.io/inferenceservice={name}")
        return [one for one in pods if "deletionTimestamp" not in one["metadata"]]

    def change(self, patch: Object, name: str = "llm-detox") -> None:
        """Send a merge patch to the InferenceService, as somebody with an editor does."""
        self.api.merge("InferenceService", self.namespace, name, patch)

    def annotate(self, name: str = "llm-detox", **annotations: str | None) -> None:
        """Set (or, by None, remove) annotations of the InferenceService; `__` stands for a slash, `_` for a dot."""
        plain = {key.replace("__", "/").replace("_", "."): value for key, value in annotations.items()}
        self.change({"metadata": {"annotations": plain}}, name)


@contextmanager
def place(cloud: Cloud, flavour: Flavour, kubelet: Callable[[Api, str], Kubelet] = ScriptedKubelet, *,
          connection: dict[str, str] | None = None, bundle: str | None = None) -> Iterator[tuple[Place, Any]]:
    """A new namespace; KServe, the platform and the kubelet work in it until the block ends.

    Args:
        cloud: where.
        flavour: the platform.
        kubelet: makes the kubelet.
        connection: the keys of the S3 Secret; None takes some that belong to no store.
        bundle: see `OpenShift`.
    """
    namespace = f"trial-{next(_numbers)}"
    cloud.api.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {
        "name": namespace, "labels": {PLATFORM_LABEL: flavour.name}}})
    _prepare(cloud, namespace, connection or _CONNECTION)
    with ExitStack() as stack:
        node = kubelet(cloud.api, namespace)
        stack.enter_context(KServe(cloud.api, namespace, flavour))
        if flavour == OPENDATAHUB:
            stack.enter_context(OpenShift(cloud.api, namespace, cloud.authority, bundle))
        stack.enter_context(node)
        yield Place(cloud, namespace, flavour), node
    cloud.api.delete_all("HorizontalPodAutoscaler", namespace)  # Kubernetes would go on asking for its pods' load


def _prepare(cloud: Cloud, namespace: str, connection: dict[str, str]) -> None:
    """The connection, and the ConfigMap that Kubernetes itself puts into each namespace (its controller is off)."""
    cloud.api.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {
        "name": "kube-root-ca.crt", "namespace": namespace},
        "data": {"ca.crt": Path(cloud.api.authority).read_text("utf-8")}})
    endpoint = connection["AWS_S3_ENDPOINT"].partition("://")[2]
    cloud.api.create({"apiVersion": "v1", "kind": "Secret", "metadata": {
        "name": CONNECTION_SECRET, "namespace": namespace, "labels": {
            "opendatahub.io/dashboard": "true", "opendatahub.io/managed": "true"},
        "annotations": {"serving.kserve.io/s3-endpoint": endpoint}},
        "data": {key: b64encode(value.encode()).decode() for key, value in connection.items()}})
