"""A stand-in for KServe's webhook on pods: it adds the storage initializer, which fetches the model."""

from __future__ import annotations

import json
from base64 import b64decode
from copy import deepcopy
from typing import Any

from tests.standins import Unmeasured
from tests.standins.kserve.platform import SERVICE_LABEL, Flavour
from tests.standins.kubernetes import fill_pod_spec, mount_token

Object = dict[str, Any]
_PREFIX = "internal.serving.kserve.io"
_PLACEHOLDER = "<scheme-placeholder>://"
_BUNDLE_MOUNT = "/etc/ssl/custom-certs"


def mutate_pod(pod: Object, others: list[Object], flavour: Flavour) -> Object:
    """The pod of a predictor as the webhook leaves it; other pods stay as they are.

    Args:
        pod: after the API server's own admission (`tests.standins.kubernetes.admit_pod`).
        others: the ServiceAccount and the Secrets with the storage's credentials among them.
        flavour: the platform.
    """
    result = deepcopy(pod)
    annotations = result["metadata"].get("annotations", {})
    if SERVICE_LABEL not in result["metadata"].get("labels", {}):
        return result
    annotations["serving.kserve.io/enable-metric-aggregation"] = "false"
    annotations["serving.kserve.io/enable-prometheus-scraping"] = "false"
    uri, variables = _source(result, others)
    _add_initializer(result["spec"], uri, variables, flavour)
    fill_pod_spec(result["spec"])
    mount_token(result)
    return result


def _source(pod: Object, others: list[Object]) -> tuple[str, list[Object]]:
    """Where the model is fetched from, and the variables with what that takes."""
    annotations, namespace = pod["metadata"]["annotations"], pod["metadata"]["namespace"]
    uri = annotations.get(f"{_PREFIX}/storage-initializer-sourceuri")
    if uri is None:
        raise Unmeasured("a model without storage")
    here = [one for one in others if one["metadata"].get("namespace") == namespace]
    if uri.startswith(_PLACEHOLDER):
        return _from_storage_config(uri.removeprefix(_PLACEHOLDER), annotations[f"{_PREFIX}/storage-spec-key"], here)
    return uri, _from_account(pod["spec"].get("serviceAccountName", "default"), here)


def _from_storage_config(path: str, key: str, others: list[Object]) -> tuple[str, list[Object]]:
    """Open Data Hub's way: the entry `key` of the Secret `storage-config` is JSON with type, bucket and CA bundle."""
    secret = next((one for one in others if (one["kind"], one["metadata"]["name"]) == ("Secret", "storage-config")), {})
    if key not in _data(secret):
        raise Unmeasured(f"a model whose key {key} is not in the Secret storage-config")
    entry = json.loads(_data(secret)[key])
    if entry.get("type") != "s3":
        raise Unmeasured("storage other than s3")
    bundle = entry.get("cabundle_configmap")
    variables: list[Object] = [{"name": "AWS_CA_BUNDLE_CONFIGMAP", "value": bundle}] if bundle else []
    variables.append({"name": "STORAGE_CONFIG", "valueFrom": {"secretKeyRef": {"key": key, "name": "storage-config"}}})
    return f"s3://{entry['bucket']}/{path}", variables


def _from_account(account: str, others: list[Object]) -> list[Object]:
    """Plain KServe's way: the S3 Secret among those of the pod's account; the endpoint stands in its annotations."""
    named = [one["name"] for other in others for one in other.get("secrets", ())
             if (other["kind"], other["metadata"]["name"]) == ("ServiceAccount", account)]
    secrets = [one for one in others if one["kind"] == "Secret" and one["metadata"]["name"] in named]
    secret = next((one for one in secrets if "AWS_ACCESS_KEY_ID" in _data(one)), None)
    if secret is None:
        return []
    annotations = secret["metadata"].get("annotations", {})
    s3 = {key for key in annotations if key.startswith("serving.kserve.io/s3-")}
    if s3 != {"serving.kserve.io/s3-endpoint"}:
        raise Unmeasured(f"an S3 Secret with the annotations {', '.join(sorted(s3)) or 'none'}")
    endpoint, name = annotations["serving.kserve.io/s3-endpoint"], secret["metadata"]["name"]
    keys: list[Object] = [{"name": key, "valueFrom": {"secretKeyRef": {"key": key, "name": name}}}
                          for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")]
    return [*keys, {"name": "S3_ENDPOINT", "value": endpoint},
            {"name": "AWS_ENDPOINT_URL", "value": f"https://{endpoint}"}]


def _add_initializer(spec: Object, uri: str, variables: list[Object], flavour: Flavour) -> None:
    bundle = next((one["value"] for one in variables if one["name"] == "AWS_CA_BUNDLE_CONFIGMAP"), None)
    mounts: list[Object] = [{"mountPath": "/mnt/models", "name": "kserve-provision-location"}]
    spec.setdefault("volumes", []).append({"name": "kserve-provision-location", "emptyDir": {}})
    if bundle:
        variables = [*variables, {"name": "CA_BUNDLE_CONFIGMAP_NAME", "value": bundle},
                     {"name": "CA_BUNDLE_VOLUME_MOUNT_POINT", "value": _BUNDLE_MOUNT}]
        mounts.append({"mountPath": _BUNDLE_MOUNT, "name": "cabundle-cert", "readOnly": True})
        spec["volumes"].append({"name": "cabundle-cert", "configMap": {"name": bundle}})
    for container in spec["containers"]:
        if container["name"] in ("kserve-container", "transformer-container"):
            container.setdefault("volumeMounts", []).append({**mounts[0], "readOnly": True})
    spec.setdefault("initContainers", []).append({
        "name": "storage-initializer", "image": flavour.storage_image, "imagePullPolicy": "IfNotPresent",
        "args": [uri, "/mnt/models"], "terminationMessagePolicy": "FallbackToLogsOnError", "volumeMounts": mounts,
        "env": [*variables, {"name": "HF_HUB_ENABLE_HF_TRANSFER", "value": "1"},
                {"name": "HF_XET_HIGH_PERFORMANCE", "value": "1"},
                {"name": "HF_XET_NUM_CONCURRENT_RANGE_GETS", "value": "8"}],
        "resources": {"limits": {"cpu": "1", "memory": flavour.storage_memory},
                      "requests": {"cpu": "100m", "memory": "100Mi"}}})


def _data(secret: Object) -> dict[str, str]:
    encoded = {key: b64decode(value).decode() for key, value in secret.get("data", {}).items()}
    return encoded | secret.get("stringData", {})
