"""A stand-in for KServe's controller of InferenceGraphs on Open Data Hub: a router behind TLS, and its Service."""

from __future__ import annotations

import json
from copy import deepcopy
from typing import Any

from tests.standins import Unmeasured
from tests.standins.kserve.containers import certificate_volumes
from tests.standins.kserve.platform import CERTIFICATE, OPENDATAHUB, ROUTER_IMAGE, Flavour

Object = dict[str, Any]
_CA_MOUNT = "/etc/odh/openshift-service-ca-bundle"
# The router gets the spec as Go writes it: the fields in the order of the structs, without spaces.
_SPEC = ("nodes", "resources", "routerTimeouts")
_STEP = ("name", "nodeName", "serviceName", "serviceUrl", "data", "weight", "condition", "dependency")
_NODE = ("routerType", "steps")
_TIMEOUTS = ("serverRead", "serverWrite", "serverIdle", "serviceClient")


def graph_objects_of(graph: Object, flavour: Flavour) -> list[Object]:
    """The router's Deployment and Service."""
    if flavour != OPENDATAHUB:
        raise Unmeasured("an InferenceGraph on plain KServe")
    given = graph["metadata"]
    name = given["name"]
    labels = given.get("labels", {}) | {"app": f"isvc.{name}", "serving.kserve.io/inferencegraph": name}
    annotations = given.get("annotations", {}) | {CERTIFICATE: f"{name}-serving-cert"}
    metadata = {"name": name, "namespace": given["namespace"], "labels": labels, "annotations": annotations}
    selector = {"app": labels["app"]}
    template = {"metadata": deepcopy(metadata), "spec": _router_pod(graph)}
    return [
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": deepcopy(metadata),
         "spec": {"replicas": 1, "selector": {"matchLabels": dict(selector)}, "template": template}},
        {"apiVersion": "v1", "kind": "Service", "metadata": deepcopy(metadata),
         "spec": {"selector": selector, "ports": [
             {"name": name, "port": 443, "protocol": "TCP", "targetPort": 8080}]}}]


def graph_status(deployment: Object) -> Object:
    """The status once the router's Deployment is available; `url` has no host until a Route stands."""
    ready = any(one["type"] == "Available" and one["status"] == "True" for one in deployment["status"]["conditions"])
    if not ready:
        raise Unmeasured("an InferenceGraph whose router is not available")
    return {"conditions": [{"status": "True", "type": "Ready"}, {"status": "False", "type": "Stopped"}],
            "observedGeneration": 1, "url": "https:"}


def _router_pod(graph: Object) -> Object:
    name = graph["metadata"]["name"]
    volumes, certificate = certificate_volumes(name)
    bundle = {"name": "openshift-service-ca-bundle", "configMap": {"name": "openshift-service-ca.crt"}}
    router = {
        "name": name, "image": ROUTER_IMAGE, "args": ["--enable-tls", "--graph-json", _as_go_writes(graph["spec"])],
        "env": [{"name": "SSL_CERT_FILE", "value": f"{_CA_MOUNT}/service-ca.crt"},
                {"name": "PROPAGATE_HEADERS", "value": "Authorization"}],
        "readinessProbe": {"httpGet": {"path": "/readyz", "port": 8080, "scheme": "HTTPS"}, "initialDelaySeconds": 5,
                           "periodSeconds": 5, "timeoutSeconds": 2},
        "resources": deepcopy(graph["spec"]["resources"]),
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "privileged": False,
                            "readOnlyRootFilesystem": True, "runAsNonRoot": True},
        "volumeMounts": [{"mountPath": _CA_MOUNT, "name": bundle["name"]}, certificate]}
    return {"automountServiceAccountToken": False, "serviceAccountName": "default", "containers": [router],
            "volumes": [bundle, *volumes]}


def _as_go_writes(spec: Object) -> str:
    if unmeasured := set(spec) - set(_SPEC):
        raise Unmeasured(f"an InferenceGraph with {', '.join(sorted(unmeasured))}")
    nodes = {name: {key: [_ordered(step, _STEP) for step in node["steps"]] if key == "steps" else node[key]
                    for key in _NODE if key in node} for name, node in sorted(spec["nodes"].items())}
    whole = {"nodes": nodes, "resources": _sorted(spec["resources"]),
             "routerTimeouts": _ordered(spec["routerTimeouts"], _TIMEOUTS)}
    return json.dumps(whole, separators=(",", ":"))


def _ordered(value: Object, order: tuple[str, ...]) -> Object:
    return {key: value[key] for key in order if key in value}


def _sorted(value: Any) -> Any:
    return {key: _sorted(value[key]) for key in sorted(value)} if isinstance(value, dict) else value
