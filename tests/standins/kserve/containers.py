"""The spec of a predictor's pod, as KServe's controller writes it into the Deployment."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from tests.standins import Unmeasured
from tests.standins.kserve.platform import PROXY_IMAGE, Flavour, predictor_name

Object = dict[str, Any]
_MODEL_ONLY = {"modelFormat", "name", "protocolVersion", "runtime", "storage", "storageUri"}
_MERGED = {"args", "env", "resources", "image"}
_PREDICTOR_ONLY = {"annotations", "deploymentStrategy", "labels", "maxReplicas", "minReplicas", "model"}
_RUNTIME_POD = ("nodeSelector", "tolerations", "affinity", "imagePullSecrets", "hostIPC")
_SERVING = ("kserve-container", "transformer-container")


def predictor_pod(service: Object, runtime: Object, flavour: Flavour) -> Object:
    """The pod's spec: the runtime's containers with what the model sets, and the platform's own container."""
    predictor = service["spec"]["predictor"]
    if unmeasured := [key for key in _RUNTIME_POD if key in runtime["spec"]]:
        raise Unmeasured(f"a runtime with {', '.join(unmeasured)}")
    spec = {key: deepcopy(value) for key, value in predictor.items() if key not in _PREDICTOR_ONLY | {"volumes"}}
    spec["containers"] = [_container(one, service) for one in runtime["spec"]["containers"]]
    spec["volumes"] = deepcopy([*runtime["spec"].get("volumes", ()), *predictor.get("volumes", ())])
    if flavour.opendatahub:
        _add_proxy(spec, service)
    return spec


def certificate_volumes(name: str) -> tuple[list[Object], Object]:
    """Open Data Hub's volumes for a serving certificate and the proxy's rules, and the mount of the first of them."""
    volumes: list[Object] = [
        {"name": "proxy-tls", "secret": {"secretName": f"{name}-serving-cert"}},
        {"name": "kube-rbac-proxy-sar-config",
         "configMap": {"name": f"{name.removesuffix('-predictor')}-kube-rbac-proxy-sar-config"}}]
    return volumes, {"mountPath": "/etc/tls/private", "name": "proxy-tls"}


def _container(given: Object, service: Object) -> Object:
    container, name = deepcopy(given), service["metadata"]["name"]
    if container["name"] == "kserve-container":
        _merge(container, service["spec"]["predictor"]["model"])
        for key in ("args", "command"):
            if key in container:
                container[key] = [text.replace("{{.Name}}", name) for text in container[key]]
        if any("{{" in text for text in container.get("args", ())):
            raise Unmeasured("a placeholder other than {{.Name}}")
    if container["name"] in _SERVING:
        container.setdefault("env", []).append({"name": "INFERENCE_SERVICE_NAME", "value": name})
    return container


def _merge(container: Object, model: Object) -> None:
    """What the model sets for the runtime's container: arguments come behind, variables replace those of their name."""
    if unmeasured := set(model) - _MODEL_ONLY - _MERGED:
        raise Unmeasured(f"a model with {', '.join(sorted(unmeasured))}")
    if "image" in model:
        container["image"] = model["image"]
    if "args" in model:
        container["args"] = [*container.get("args", ()), *model["args"]]
    variables = {one["name"]: one for one in (*container.get("env", ()), *model.get("env", ()))}
    container["env"] = deepcopy(list(variables.values()))
    for bound, amounts in model.get("resources", {}).items():
        container.setdefault("resources", {}).setdefault(bound, {}).update(amounts)


def _add_proxy(spec: Object, service: Object) -> None:
    """Open Data Hub's kube-rbac-proxy, protected or not; the pod gets its account's token whatever the spec says."""
    volumes, certificate = certificate_volumes(predictor_name(service))
    spec["automountServiceAccountToken"] = True
    spec["volumes"] += volumes
    spec["containers"][0].setdefault("volumeMounts", []).append(dict(certificate))
    health = {"httpGet": {"path": "/healthz", "port": 8643, "scheme": "HTTPS"}, "periodSeconds": 5}
    spec["containers"].append({
        "name": "kube-rbac-proxy", "image": PROXY_IMAGE,
        "args": ["--secure-listen-address=:8443", "--proxy-endpoints-port=8643", "--upstream=http://localhost:8080",
                 "--auth-header-fields-enabled=true", "--tls-cert-file=/etc/tls/private/tls.crt",
                 "--tls-private-key-file=/etc/tls/private/tls.key",
                 "--config-file=/etc/kube-rbac-proxy/config-file.yaml", "--v=4"],
        "ports": [{"containerPort": 8443, "name": "https"}, {"containerPort": 8643, "name": "proxy"}],
        "livenessProbe": {**deepcopy(health), "initialDelaySeconds": 30},
        "readinessProbe": {**deepcopy(health), "initialDelaySeconds": 5},
        "resources": {"limits": {"cpu": "200m", "memory": "128Mi"}, "requests": {"cpu": "100m", "memory": "64Mi"}},
        "volumeMounts": [dict(certificate), {"mountPath": "/etc/kube-rbac-proxy", "name": "kube-rbac-proxy-sar-config",
                                             "readOnly": True}]})
