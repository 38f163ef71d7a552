"""A stand-in for what Kubernetes itself adds (1.34): the API server's defaults, a ReplicaSet's pod, pod admission.

With a real API server none of it is needed; it is here so that what KServe writes can be compared with recordings.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

Object = dict[str, Any]
_FILE_MODE = 420  # 0644
_SERVICE_ACCOUNT_MOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"


def with_defaults(given: Object) -> Object:
    """The object as the API server stores it: its defaults filled in, a new object."""
    result = deepcopy(given)
    {"Deployment": _deployment, "Service": _service, "HorizontalPodAutoscaler": _autoscaler,
     "Ingress": _first_generation}[result["kind"]](result)
    return result


def pod_of(deployment: Object, template_hash: str) -> Object:
    """The pod that the ReplicaSet of a Deployment asks for, before admission."""
    template = deepcopy(deployment["spec"]["template"])
    prefix = f"{deployment['metadata']['name']}-{template_hash}-"
    metadata = {**template["metadata"], "generateName": prefix, "name": f"{prefix}xxxxx",
                "labels": {**template["metadata"]["labels"], "pod-template-hash": template_hash}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}


def admit_pod(pod: Object) -> Object:
    """The pod as the API server's own admission leaves it, before the webhooks: token, tolerations, priority."""
    result = deepcopy(pod)
    result["metadata"]["generation"] = 1
    spec = result["spec"]
    add_token(result)
    spec.setdefault("tolerations", []).extend(
        {"effect": "NoExecute", "key": f"node.kubernetes.io/{trouble}", "operator": "Exists", "tolerationSeconds": 300}
        for trouble in ("not-ready", "unreachable"))
    spec.update(enableServiceLinks=True, preemptionPolicy="PreemptLowerPriority", priority=0)
    return result


def add_token(pod: Object) -> None:
    """Give the pod its account's token, unless it wants none, in place: the admission plugin ServiceAccount."""
    if pod["spec"].get("automountServiceAccountToken", True):
        pod["spec"].setdefault("volumes", []).append(_token_volume())
        mount_token(pod)


def mount_token(pod: Object) -> None:
    """Mount the account's token where it is missing: admission does so again for containers that webhooks add."""
    name = next((one["name"] for one in pod["spec"].get("volumes", ()) if "projected" in one), None)
    for container in (*pod["spec"]["containers"], *pod["spec"].get("initContainers", ())) if name else ():
        mounts = container.setdefault("volumeMounts", [])
        if all(one["mountPath"] != _SERVICE_ACCOUNT_MOUNT for one in mounts):
            mounts.append({"mountPath": _SERVICE_ACCOUNT_MOUNT, "name": name, "readOnly": True})


def fill_pod_spec(spec: Object) -> None:
    """The defaults of a pod's spec, in place."""
    for key, value in (("dnsPolicy", "ClusterFirst"), ("restartPolicy", "Always"), ("securityContext", {}),
                       ("schedulerName", "default-scheduler"), ("terminationGracePeriodSeconds", 30)):
        spec.setdefault(key, value)
    if "serviceAccountName" in spec:
        spec["serviceAccount"] = spec["serviceAccountName"]
    for container in (*spec["containers"], *spec.get("initContainers", ())):
        _container(container)
    for volume in spec.get("volumes", ()):
        for kind in ("configMap", "secret", "projected", "downwardAPI"):
            if kind in volume:
                volume[kind].setdefault("defaultMode", _FILE_MODE)


def _container(container: Object) -> None:
    tag = container["image"].rpartition("/")[2].partition(":")[2]
    container.setdefault("imagePullPolicy", "Always" if tag in ("", "latest") else "IfNotPresent")
    container.setdefault("terminationMessagePath", "/dev/termination-log")
    container.setdefault("terminationMessagePolicy", "File")
    container.setdefault("resources", {})
    for port in container.get("ports", ()):
        port.setdefault("protocol", "TCP")
    for variable in container.get("env", ()):
        if reference := variable.get("valueFrom", {}).get("fieldRef"):
            reference.setdefault("apiVersion", "v1")
    for name in ("livenessProbe", "readinessProbe", "startupProbe"):
        if probe := container.get(name):
            for key, value in (("failureThreshold", 3), ("periodSeconds", 10), ("successThreshold", 1),
                               ("timeoutSeconds", 1)):
                probe.setdefault(key, value)
            if "httpGet" in probe:
                probe["httpGet"].setdefault("scheme", "HTTP")


def _deployment(result: Object) -> None:
    result["metadata"]["generation"] = 1
    spec = result["spec"]
    for key, value in (("progressDeadlineSeconds", 600), ("replicas", 1), ("revisionHistoryLimit", 10)):
        spec.setdefault(key, value)
    strategy = spec.setdefault("strategy", {})
    if strategy.setdefault("type", "RollingUpdate") == "RollingUpdate":
        rolling = strategy.setdefault("rollingUpdate", {})
        rolling.setdefault("maxSurge", "25%")
        rolling.setdefault("maxUnavailable", "25%")
    fill_pod_spec(spec["template"]["spec"])


def _service(result: Object) -> None:
    for key, value in (("internalTrafficPolicy", "Cluster"), ("ipFamilies", ["IPv4"]), ("sessionAffinity", "None"),
                       ("ipFamilyPolicy", "SingleStack"), ("type", "ClusterIP")):
        result["spec"].setdefault(key, value)
    for port in result["spec"]["ports"]:
        port.setdefault("protocol", "TCP")
        port.setdefault("targetPort", port["port"])
    result["status"] = {"loadBalancer": {}}


def _autoscaler(result: Object) -> None:
    """`behavior: {}` is filled with the ways down and up that everybody gets."""
    if "behavior" not in result["spec"]:
        return
    all_of_them = {"periodSeconds": 15, "type": "Percent", "value": 100}
    result["spec"]["behavior"] = {
        "scaleDown": {"policies": [all_of_them], "selectPolicy": "Max"},
        "scaleUp": {"policies": [{"periodSeconds": 15, "type": "Pods", "value": 4}, dict(all_of_them)],
                    "selectPolicy": "Max", "stabilizationWindowSeconds": 0}}


def _first_generation(result: Object) -> None:
    result["metadata"]["generation"] = 1
    result["status"] = {"loadBalancer": {}}


def _token_volume() -> Object:
    return {"name": "kube-api-access-xxxxx", "projected": {"defaultMode": _FILE_MODE, "sources": [
        {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
        {"configMap": {"items": [{"key": "ca.crt", "path": "ca.crt"}], "name": "kube-root-ca.crt"}},
        {"downwardAPI": {"items": [{"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"},
                                    "path": "namespace"}]}}]}}
