"""A stand-in for KServe's controller: the Deployment, Service, HorizontalPodAutoscaler and Ingress of a model.

The objects are as the controller sends them; what the API server adds is in `tests.standins.kubernetes`.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from tests.standins import Unmeasured
from tests.standins.kserve.containers import predictor_pod
from tests.standins.kserve.platform import (
    AUTOSCALER,
    CERTIFICATE,
    KSERVE,
    SERVICE_LABEL,
    VISIBILITY,
    Flavour,
    ReconcileFailed,
    is_protected,
    is_stopped,
    predictor_name,
)
from tests.standins.kserve.runtimes import runtime_of

Object = dict[str, Any]
_LONGEST_LABEL = 63  # of a domain name
_NOT_COPIED = ("modelFormat", "kubectl.kubernetes.io/last-applied-configuration")


def objects_of(service: Object, others: list[Object], flavour: Flavour) -> list[Object]:
    """What the controller makes of an InferenceService.

    Args:
        service: as the webhooks left it.
        others: the objects beside it; runtimes are looked up there.
        flavour: the platform.

    Returns:
        Deployment, Service, HorizontalPodAutoscaler, and on plain KServe the Ingress; none while it is stopped.

    Raises:
        SpecRefused: there is no such runtime, or it does not take the model's format.
        ReconcileFailed: a host name would be too long, or the autoscaler's own kinds are not installed.
    """
    if is_stopped(service):
        return []
    runtime = runtime_of(service, others)
    _fail_where_it_failed(service, flavour)
    metadata = _metadata(service, runtime, flavour)
    deployment = _deployment(service, runtime, metadata, flavour)
    result = [deployment, _service(service, deployment, metadata), _autoscaler(service, metadata)]
    if flavour == KSERVE and service["metadata"].get("labels", {}).get(VISIBILITY) != "cluster-local":
        result.append(_ingress(service, flavour))
    return result


def host_of(service: Object, flavour: Flavour, *, predictor: bool = False) -> str:
    """The host name outside of the cluster."""
    name = predictor_name(service) if predictor else service["metadata"]["name"]
    return f"{name}-{service['metadata']['namespace']}.{flavour.domain}"


def _fail_where_it_failed(service: Object, flavour: Flavour) -> None:
    if service["metadata"]["annotations"].get(AUTOSCALER) == "keda":
        raise ReconcileFailed('failed to get existing KEDA autoscaler: no matches for kind "ScaledObject"')
    label = host_of(service, flavour, predictor=True).partition(".")[0]
    if flavour == KSERVE and len(label) > _LONGEST_LABEL:
        raise ReconcileFailed("failed creating host name: invalid domain name")


def _metadata(service: Object, runtime: Object, flavour: Flavour) -> Object:
    """Name, labels and annotations, which all of them (save the Ingress) and the pods get."""
    given, predictor, name = service["metadata"], service["spec"]["predictor"], predictor_name(service)
    annotations = {key: value for key, value in given.get("annotations", {}).items() if key not in _NOT_COPIED}
    annotations |= runtime["spec"].get("annotations", {}) | predictor.get("annotations", {}) | _storage(service)
    if flavour.opendatahub:
        annotations[CERTIFICATE] = f"{name}-serving-cert"
    labels = given.get("labels", {}) | runtime["spec"].get("labels", {}) | predictor.get("labels", {}) | {
        "app": f"isvc.{name}", "component": "predictor", SERVICE_LABEL: given["name"]}
    return {"name": name, "namespace": given["namespace"], "labels": labels, "annotations": annotations}


def _storage(service: Object) -> dict[str, str]:
    """The annotations by which the pod webhook learns where the model lies."""
    prefix, model = "internal.serving.kserve.io", service["spec"]["predictor"]["model"]
    if "storageUri" in model:
        return {f"{prefix}/storage-initializer-sourceuri": model["storageUri"]}
    if set(model.get("storage", ())) != {"key", "path"}:
        raise Unmeasured("storage other than key and path, or none")
    return {f"{prefix}/storage-initializer-sourceuri": f"<scheme-placeholder>://{model['storage']['path']}",
            f"{prefix}/storage-spec": "true", f"{prefix}/storage-spec-key": model["storage"]["key"]}


def _deployment(service: Object, runtime: Object, metadata: Object, flavour: Flavour) -> Object:
    predictor = service["spec"]["predictor"]
    return {
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": deepcopy(metadata),
        "spec": {
            "replicas": predictor.get("minReplicas", 1),
            "selector": {"matchLabels": {"app": metadata["labels"]["app"]}},
            "strategy": deepcopy(predictor.get("deploymentStrategy", {"type": "RollingUpdate"})),
            "template": {"metadata": deepcopy(metadata), "spec": predictor_pod(service, runtime, flavour)}}}


def _service(service: Object, deployment: Object, metadata: Object) -> Object:
    containers = deployment["spec"]["template"]["spec"]["containers"]
    front = next((one for one in containers if one["name"] == "transformer-container"), containers[0])
    if not front.get("ports"):
        raise Unmeasured("a runtime whose container names no port")
    first, *more = front["ports"]
    ports: list[Object] = [{"name": first.get("name", "http"), "port": 80, "protocol": "TCP",
                            "targetPort": first["containerPort"]}]
    if is_protected(service) and any(one["name"] == "kube-rbac-proxy" for one in containers):
        ports = [{"name": "https", "port": 8443, "protocol": "TCP", "targetPort": "https"}]
    for port in more:
        protocol = {"appProtocol": "kubernetes.io/h2c"} if port["name"] == "h2c" else {}
        ports.append({**protocol, "name": port["name"], "port": port["containerPort"], "protocol": "TCP",
                      "targetPort": port["containerPort"]})
    return {"apiVersion": "v1", "kind": "Service", "metadata": deepcopy(metadata),
            "spec": {"ports": ports, "selector": {"app": metadata["labels"]["app"]}}}


def _autoscaler(service: Object, metadata: Object) -> Object:
    predictor = service["spec"]["predictor"]
    if "autoScaling" in predictor or "scaleMetric" in predictor:
        raise Unmeasured("autoscaling by anything but the processor")
    usage = {"type": "Resource", "resource": {"name": "cpu", "target": {
        "type": "Utilization", "averageUtilization": 80}}}
    return {
        "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": deepcopy(metadata),
        "spec": {
            "behavior": {}, "metrics": [usage], "minReplicas": predictor.get("minReplicas", 1),
            "maxReplicas": max(predictor.get("maxReplicas", 1), predictor.get("minReplicas", 1)),
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": metadata["name"]}}}


def _ingress(service: Object, flavour: Flavour) -> Object:
    """Two hosts, both to the predictor's Service, and nothing that asks who is there."""
    backend = {"service": {"name": predictor_name(service), "port": {"number": 80}}}
    rules = [{"host": host, "http": {"paths": [{"backend": deepcopy(backend), "path": "/", "pathType": "Prefix"}]}}
             for host in (host_of(service, flavour), host_of(service, flavour, predictor=True))]
    given = service["metadata"]
    return {"apiVersion": "networking.k8s.io/v1", "kind": "Ingress",
            "metadata": {"name": given["name"], "namespace": given["namespace"],
                         "annotations": dict(given["annotations"])},
            "spec": {"ingressClassName": "istio", "rules": rules}}
