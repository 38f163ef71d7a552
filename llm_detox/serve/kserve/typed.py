"""The InferenceService by the typed models of KServe's own SDK: what they do not know is not sent.

The API server says the same later and for its own version (strict field validation); this says it before anything is
asked of a cluster. The SDK takes seconds to import, so only a deployment does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from llm_detox.errors import UsageError

_MAPPING, _LIST = re.compile(r"dict\(str, (.+)\)"), re.compile(r"list\[(.+)\]")
# What the SDK's generator calls a type of Kubernetes that has a plainer name in Kubernetes' own client.
_ALIASES = {"K8sIoApiAppsV1DeploymentStrategy": "V1DeploymentStrategy"}


def require_known_fields(manifest: Mapping[str, Any]) -> None:
    """Check an InferenceService, field by field, as deep as the SDK has types.

    Raises:
        UsageError: a field does not exist, with its path.
    """
    unknown = list(unknown_fields(manifest, "V1beta1InferenceService"))
    if unknown:
        raise UsageError(f"KServe's InferenceService has no field {', '.join(unknown)}",
                         place=str(manifest["metadata"].get("name")), remedy="correct the manifests: make manifests")


def unknown_fields(value: Any, kind: str, path: str = "") -> Iterator[str]:
    """The paths of the fields that the SDK's type of this name does not have."""
    if match := _MAPPING.fullmatch(kind):
        for key, below in value.items():
            yield from unknown_fields(below, match[1], f"{path}.{key}")
    elif match := _LIST.fullmatch(kind):
        for index, below in enumerate(value):
            yield from unknown_fields(below, match[1], f"{path}[{index}]")
    elif (model := _model(kind)) is not None and isinstance(value, Mapping):
        types = {name: model.openapi_types[attribute] for attribute, name in model.attribute_map.items()}
        for name, below in value.items():
            place = f"{path}.{name}".lstrip(".")
            if name not in types:
                yield place
            else:
                yield from unknown_fields(below, types[name], place)


def _model(kind: str) -> Any:
    """The class of the SDK, or of Kubernetes' client; None for plain values."""
    import kserve
    from kserve import models
    from kubernetes import client

    name = _ALIASES.get(kind, kind)
    return next((found for place in (kserve, models, client) if (found := getattr(place, name, None)) is not None
                 and hasattr(found, "openapi_types")), None)
