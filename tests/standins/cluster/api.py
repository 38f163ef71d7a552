"""The API server's REST interface for stand-ins: objects as they stand in YAML, errors as the server words them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import urllib3

from tests.standins.cluster.changes import Changes

Object = dict[str, Any]
_MERGE, _APPLY = "application/merge-patch+json", "application/apply-patch+yaml"
_METADATA_ONLY = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
_KINDS = {
    "Binding": ("api/v1", "bindings"), "ConfigMap": ("api/v1", "configmaps"), "Event": ("api/v1", "events"),
    "Namespace": ("api/v1", "namespaces"), "Node": ("api/v1", "nodes"), "Pod": ("api/v1", "pods"),
    "Secret": ("api/v1", "secrets"), "Service": ("api/v1", "services"),
    "ServiceAccount": ("api/v1", "serviceaccounts"),
    "Deployment": ("apis/apps/v1", "deployments"), "ReplicaSet": ("apis/apps/v1", "replicasets"),
    "HorizontalPodAutoscaler": ("apis/autoscaling/v2", "horizontalpodautoscalers"),
    "Job": ("apis/batch/v1", "jobs"), "EndpointSlice": ("apis/discovery.k8s.io/v1", "endpointslices"),
    "Ingress": ("apis/networking.k8s.io/v1", "ingresses"),
    "NetworkPolicy": ("apis/networking.k8s.io/v1", "networkpolicies"),
    "InferenceService": ("apis/serving.kserve.io/v1beta1", "inferenceservices"),
    "InferenceGraph": ("apis/serving.kserve.io/v1alpha1", "inferencegraphs"),
    "ServingRuntime": ("apis/serving.kserve.io/v1alpha1", "servingruntimes"),
    "ClusterServingRuntime": ("apis/serving.kserve.io/v1alpha1", "clusterservingruntimes"),
    "Role": ("apis/rbac.authorization.k8s.io/v1", "roles"),
    "RoleBinding": ("apis/rbac.authorization.k8s.io/v1", "rolebindings"),
    "Route": ("apis/route.openshift.io/v1", "routes"),
    "ServiceMonitor": ("apis/monitoring.coreos.com/v1", "servicemonitors"),
    "PrometheusRule": ("apis/monitoring.coreos.com/v1", "prometheusrules"),
    "ScaledObject": ("apis/keda.sh/v1alpha1", "scaledobjects"),
    "TrainJob": ("apis/trainer.kubeflow.org/v1alpha1", "trainjobs"),
    "MutatingWebhookConfiguration": ("apis/admissionregistration.k8s.io/v1", "mutatingwebhookconfigurations"),
    "ValidatingWebhookConfiguration": ("apis/admissionregistration.k8s.io/v1", "validatingwebhookconfigurations"),
}
_CLUSTER_WIDE = ("Namespace", "Node", "ClusterServingRuntime", "MutatingWebhookConfiguration",
                 "ValidatingWebhookConfiguration")
MISSING, CONFLICT = 404, 409


class ApiError(Exception):
    """The server's refusal."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status, self.message = status, message


class ApiAway(Exception):
    """Nothing answers; it may come back."""


class Api:
    """A login at an API server.

    Args:
        host: with scheme and port.
        authority: the file with the certificate that its own is checked against.
        token: of the login.
    """

    def __init__(self, host: str, authority: str, token: str) -> None:
        self.host, self.authority, self.token = host, authority, token
        self.changes = Changes(self.changed_namespaces)
        self._pool = urllib3.PoolManager(maxsize=8, ca_certs=authority, retries=False, timeout=30.0)

    @classmethod
    def of(cls, kubeconfig: Path) -> Api:
        """The administrator's."""
        config = json.loads(kubeconfig.read_text("utf-8"))
        cluster = config["clusters"][0]["cluster"]
        return cls(cluster["server"], cluster["certificate-authority"], config["users"][0]["user"]["token"])

    def list(self, kind: str, namespace: str, labels: str = "") -> list[Object]:
        """The objects of a kind, perhaps with these labels (`key=value`), each with its kind."""
        query = {"labelSelector": labels} if labels else {}
        answer = self._send("GET", _path(kind, namespace), query=query)
        version = answer["apiVersion"]
        return [{"apiVersion": version, "kind": kind, **one} for one in answer["items"]]

    def get(self, kind: str, namespace: str, name: str) -> Object | None:
        """The object, or None."""
        try:
            return self._send("GET", _path(kind, namespace, name))
        except ApiError as error:
            if error.status == MISSING:
                return None
            raise

    def changed_namespaces(self, kind: str) -> Iterator[str]:
        """Watch a kind: the namespace of each object that is there or changes, until the server ends the answer."""
        headers = {"Authorization": f"Bearer {self.token}", "Accept": _METADATA_ONLY}
        try:
            answer = self._pool.request("GET", f"{self.host}{_path(kind, '')}?watch=true", headers=headers,
                                        preload_content=False, timeout=urllib3.Timeout(connect=30.0, read=None))
            if answer.status >= 400:
                raise ApiError(answer.status, f"{kind} cannot be watched")
            for line in answer:
                yield json.loads(line)["object"]["metadata"].get("namespace", "")
        except urllib3.exceptions.HTTPError as error:
            raise ApiAway(str(error)) from error

    def create(self, one: Object, *, sub: str = "") -> Object:
        """Make the object; `sub` makes a subresource of the one that it names."""
        namespace, name = one["metadata"].get("namespace", ""), one["metadata"].get("name", "")
        kind = "Pod" if sub == "binding" else "ServiceAccount" if sub == "token" else one["kind"]
        return self._send("POST", _path(kind, namespace, name if sub else "", sub), one)

    def replace(self, one: Object, *, sub: str = "") -> Object:
        """Write the whole object, or its subresource; its resourceVersion must be the live one, if it has any."""
        given = one["metadata"]
        return self._send("PUT", _path(one["kind"], given.get("namespace", ""), given["name"], sub), one)

    def merge(self, kind: str, namespace: str, name: str, patch: Object, *, sub: str = "") -> Object:
        """Send a merge patch."""
        return self._send("PATCH", _path(kind, namespace, name, sub), patch, content=_MERGE)

    def set_fields(self, one: Object, manager: str) -> None:
        """Apply an object server-side, as `kubectl apply --server-side --force-conflicts` does."""
        given, query = one["metadata"], {"fieldManager": manager, "force": "true", "fieldValidation": "Strict"}
        self._send("PATCH", _path(one["kind"], given.get("namespace", ""), given["name"]), one, query=query,
                   content=_APPLY)

    def delete(self, kind: str, namespace: str, name: str, *, grace_seconds: int | None = None) -> None:
        """Remove the object; it is fine if it is not there."""
        options = {} if grace_seconds is None else {"gracePeriodSeconds": grace_seconds}
        try:
            self._send("DELETE", _path(kind, namespace, name), {"kind": "DeleteOptions", "apiVersion": "v1", **options})
        except ApiError as error:
            if error.status != MISSING:
                raise

    def delete_all(self, kind: str, namespace: str) -> None:
        """Remove all objects of a kind in a namespace."""
        self._send("DELETE", _path(kind, namespace))

    def apply(self, one: Object) -> None:
        """Make the object, or write it over the live one."""
        try:
            self.create(one)
        except ApiError as error:
            if error.status != CONFLICT:
                raise
            self.replace(one)

    def _send(self, method: str, path: str, body: Any = None, *, query: dict[str, str] | None = None,
              content: str = "application/json") -> Any:
        url = f"{self.host}{path}" + (f"?{urlencode(query)}" if query else "")
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": content}
        try:
            answer = self._pool.request(method, url, body=None if body is None else json.dumps(body), headers=headers)
        except urllib3.exceptions.HTTPError as error:
            raise ApiAway(str(error)) from error
        try:
            result = json.loads(answer.data)
        except ValueError:
            result = {"message": answer.data.decode("utf-8", "replace")}
        if answer.status >= 400:
            raise ApiError(answer.status, str(result.get("message", answer.reason)))
        return result


def _path(kind: str, namespace: str, name: str = "", sub: str = "") -> str:
    version, plural = _KINDS[kind]
    scope = f"namespaces/{namespace}/" if namespace and kind not in _CLUSTER_WIDE else ""
    return "/".join(["", version, scope + plural, *([name] if name else ()), *([sub] if sub else ())])
