"""What OpenShift and Open Data Hub put into a project beside KServe, as far as the pods of a model need it.

Not measured: OpenShift's service CA and odh-model-controller were not running when KServe was recorded. It follows
what the recorded pods mount.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from typing import Any

from tests.standins.cluster.api import Api
from tests.standins.cluster.certificates import Authority
from tests.standins.cluster.worker import Worker
from tests.standins.kserve.platform import CERTIFICATE, EXPOSED, VISIBILITY, is_protected, predictor_name

Object = dict[str, Any]
CA_BUNDLE = "odh-kserve-custom-ca-bundle"
_CONNECTION_LABEL = "opendatahub.io/managed=true"


class OpenShift(Worker):
    """Serving certificates, the ConfigMaps with authorities, the proxy's rules, and the Secret `storage-config`.

    Args:
        api: the administrator's.
        namespace: the project.
        authority: the service CA.
        bundle: PEM of the authorities that S3 is trusted by; None where the platform has none.
    """

    kinds = ("Service", "InferenceService", "Secret")

    def __init__(self, api: Api, namespace: str, authority: Authority, bundle: str | None = None) -> None:
        super().__init__(api, namespace)
        self._authority, self._bundle = authority, bundle
        self._made: set[tuple[str, str]] = set()

    def look(self) -> None:
        self._make("ConfigMap", "openshift-service-ca.crt", {"data": {
            "service-ca.crt": self._authority.pem().decode()}})
        if self._bundle is not None:
            self._make("ConfigMap", CA_BUNDLE, {"data": {"cabundle.crt": self._bundle}})
        for service in self.api.list("Service", self.namespace):
            name = service["metadata"].get("annotations", {}).get(CERTIFICATE)
            if name:
                self._serving_certificate(service["metadata"]["name"], name)
        for service in self.api.list("InferenceService", self.namespace):
            name = service["metadata"]["name"]
            self._make("ConfigMap", f"{name}-kube-rbac-proxy-sar-config", {"data": {"config-file.yaml": json.dumps({
                "authorization": {"resourceAttributes": {
                    "apiGroup": "serving.kserve.io", "resource": "inferenceservices", "verb": "get", "name": name,
                    "namespace": self.namespace}}})}})
        self._storage_config()

    def _serving_certificate(self, service: str, secret: str) -> None:
        if ("Secret", secret) in self._made:
            return
        host = f"{service}.{self.namespace}.svc"
        pair = self._authority.sign(host, f"{host}.cluster.local")
        self._make("Secret", secret, {"type": "kubernetes.io/tls", "data": {
            "tls.crt": _encoded(pair.certificate.read_bytes()), "tls.key": _encoded(pair.key.read_bytes())}})

    def _storage_config(self) -> None:
        """Each connection of the dashboard is an entry with what KServe's storage initializer reads."""
        entries = {}
        for secret in self.api.list("Secret", self.namespace, _CONNECTION_LABEL):
            values = {key: b64decode(value).decode() for key, value in secret.get("data", {}).items()}
            if "AWS_S3_ENDPOINT" in values:
                entries[secret["metadata"]["name"]] = json.dumps({
                    "type": "s3", "access_key_id": values["AWS_ACCESS_KEY_ID"],
                    "secret_access_key": values["AWS_SECRET_ACCESS_KEY"], "endpoint_url": values["AWS_S3_ENDPOINT"],
                    "bucket": values["AWS_S3_BUCKET"], "region": values.get("AWS_DEFAULT_REGION", ""),
                    **({"cabundle_configmap": CA_BUNDLE} if self._bundle is not None else {})})
        data = {name: _encoded(entry.encode()) for name, entry in entries.items()}
        live = self.api.get("Secret", self.namespace, "storage-config")
        if data and (live or {}).get("data") != data:
            self.api.apply({"apiVersion": "v1", "kind": "Secret", "data": data,
                            "metadata": {"name": "storage-config", "namespace": self.namespace}})

    def _make(self, kind: str, name: str, content: Object) -> None:
        if (kind, name) not in self._made:
            self.api.apply({"apiVersion": "v1", "kind": kind, **content,
                            "metadata": {"name": name, "namespace": self.namespace}})
            self._made.add((kind, name))


class Routes(Worker):
    """odh-model-controller's Routes of exposed models, and a router that admits them. Read, not recorded.

    A Route has its model's name and belongs to it; that of a protected model is encrypted anew on its way to 8443.
    """

    kinds = ("InferenceService", "Route")

    def look(self) -> None:
        live = {one["metadata"]["name"]: one for one in self.api.list("Route", self.namespace)}
        for service in self.api.list("InferenceService", self.namespace):
            route, spec = live.get(service["metadata"]["name"]), route_spec(service)
            if service["metadata"].get("labels", {}).get(VISIBILITY) != EXPOSED:
                if route:
                    self.api.delete("Route", self.namespace, route["metadata"]["name"])
            elif route is None or route["spec"] != spec:
                self._write(service, route, spec)
            elif not route.get("status"):
                self._admit(route)

    def _write(self, service: Object, route: Object | None, spec: Object) -> None:
        given = service["metadata"]
        self.api.apply({
            "apiVersion": "route.openshift.io/v1", "kind": "Route", "spec": spec, "metadata": {
                "name": given["name"], "namespace": self.namespace, "ownerReferences": [{
                    "apiVersion": service["apiVersion"], "kind": service["kind"], "name": given["name"],
                    "uid": given["uid"], "controller": True, "blockOwnerDeletion": True}],
                **({"resourceVersion": route["metadata"]["resourceVersion"]} if route else {})}})

    def _admit(self, route: Object) -> None:
        admitted = {"host": route["spec"]["host"], "routerName": "default",
                    "conditions": [{"type": "Admitted", "status": "True"}]}
        self.api.merge("Route", self.namespace, route["metadata"]["name"], {"status": {"ingress": [admitted]}},
                       sub="status")


def route_spec(service: Object) -> Object:
    """Of the Route of an exposed model: to its Service, as far as anybody may ask over it."""
    given = service["metadata"]
    port, termination = ("https", "reencrypt") if is_protected(service) else ("http", "edge")
    return {"host": f"{given['name']}-{given['namespace']}.apps.example.com", "port": {"targetPort": port},
            "tls": {"termination": termination, "insecureEdgeTerminationPolicy": "Redirect"},
            "to": {"kind": "Service", "name": predictor_name(service), "weight": 100}, "wildcardPolicy": "None"}


def _encoded(value: bytes) -> str:
    return b64encode(value).decode()
