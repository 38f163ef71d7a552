"""A container's variables, user and mounts, as a kubelet works them out; what it would not start is refused."""

from __future__ import annotations

import re
from base64 import b64decode
from dataclasses import dataclass
from typing import Any

from tests.standins import Unmeasured
from tests.standins.cluster.api import Api
from tests.standins.node.images import Image

Object = dict[str, Any]
_REFERENCE = re.compile(r"\$\(([A-Za-z_][A-Za-z0-9_.-]*)\)")
_FIELD = re.compile(r"metadata\.(labels|annotations)\['(.+)'\]")


class ConfigError(Exception):
    """`CreateContainerConfigError`, in the kubelet's words."""


@dataclass(frozen=True)
class User:
    """By numbers."""

    user: int
    group: int
    more_groups: tuple[int, ...]


def variables(container: Object, image: Image, pod: Object, address: str, api: Api) -> dict[str, str]:
    """The variables of a container's program.

    Raises:
        ConfigError: a Secret or ConfigMap, or a key in it, is not there.
    """
    result = image.variables() | {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "KUBERNETES_SERVICE_PORT": "443",
                                  "HOSTNAME": pod["metadata"]["name"][:63]}
    if "envFrom" in container:
        raise Unmeasured("envFrom")
    for one in container.get("env", ()):
        value = one.get("value", "") if "valueFrom" not in one else _from(one["valueFrom"], pod, address, api)
        if value is not None:
            result[one["name"]] = expanded(value, result)
    return result


def expanded(text: str, known: dict[str, str]) -> str:
    """`$(NAME)` is replaced where NAME is known, as in arguments."""
    return _REFERENCE.sub(lambda match: known.get(match[1], match[0]), text)


def user_of(container: Object, image: Image, pod: Object, arbitrary: int | None) -> User:
    """As whom the container runs.

    Args:
        container: with its securityContext.
        image: whose user it is where nothing else is said.
        pod: with its securityContext.
        arbitrary: the number that OpenShift gives to all pods of a project; None elsewhere.

    Raises:
        ConfigError: it must not be root, and is, or might be.
    """
    of_pod, own = pod["spec"].get("securityContext", {}), container.get("securityContext", {})
    both = of_pod | own
    given = both.get("runAsUser", arbitrary)
    user = image.user if given is None else str(given)
    place = f'(pod: "{pod["metadata"]["name"]}_{pod["metadata"]["namespace"]}", container: {container["name"]})'
    if both.get("runAsNonRoot"):
        if not user.isdigit():
            raise ConfigError(f"container has runAsNonRoot and image has non-numeric user ({user}), cannot verify user "
                              f"is non-root {place}")
        if user == "0":
            raise ConfigError(f"container has runAsNonRoot and image will run as root {place}")
    groups = tuple(one for one in (of_pod.get("fsGroup"), *of_pod.get("supplementalGroups", ())) if one is not None)
    return User(int(user) if user.isdigit() else _OF_A_NAME, both.get("runAsGroup", 0), groups)


_OF_A_NAME = 1001


def _from(source: Object, pod: Object, address: str, api: Api) -> str | None:
    if "fieldRef" in source:
        return field(source["fieldRef"]["fieldPath"], pod, address)
    for key, kind in (("secretKeyRef", "Secret"), ("configMapKeyRef", "ConfigMap")):
        if key in source:
            return _key_of(kind, source[key], pod["metadata"]["namespace"], api)
    raise Unmeasured(f"valueFrom {', '.join(source)}")


def field(path: str, pod: Object, address: str) -> str:
    """A field of the pod, as the downward API gives it: an absent label is an empty text."""
    if match := _FIELD.fullmatch(path):
        return str(pod["metadata"].get(match[1], {}).get(match[2], ""))
    known = {"metadata.name": pod["metadata"]["name"], "metadata.namespace": pod["metadata"]["namespace"],
             "metadata.uid": pod["metadata"]["uid"], "status.podIP": address,
             "spec.serviceAccountName": pod["spec"].get("serviceAccountName", "default")}
    if path not in known:
        raise Unmeasured(f"the field {path}")
    return str(known[path])


def _key_of(kind: str, reference: Object, namespace: str, api: Api) -> str | None:
    name, key = reference["name"], reference["key"]
    one = api.get(kind, namespace, name)
    if one is None:
        if reference.get("optional"):
            return None
        raise ConfigError(f'{kind.lower()} "{name}" not found')
    if key not in one.get("data", {}):
        if reference.get("optional"):
            return None
        raise ConfigError(f"couldn't find key {key} in {kind} {namespace}/{name}")
    return b64decode(one["data"][key]).decode() if kind == "Secret" else str(one["data"][key])
