"""The two platforms that were recorded, and what they do differently by their configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Object = dict[str, Any]
AUTH = "security.opendatahub.io/enable-auth"
CERTIFICATE = "service.beta.openshift.io/serving-cert-secret-name"
DEPLOYMENT_MODE = "serving.kserve.io/deploymentMode"
AUTOSCALER = "serving.kserve.io/autoscalerClass"
STOP = "serving.kserve.io/stop"
VISIBILITY = "networking.kserve.io/visibility"
EXPOSED = "exposed"
SERVICE_LABEL = "serving.kserve.io/inferenceservice"


class Refused(Exception):
    """An admission webhook denied the request; the text is its own."""


class ReconcileFailed(Exception):
    """The controller took the spec and then failed: condition `Ready: False`, reason `ReconcileFailed`, this message.

    The recordings have the last part of the message only.
    """


@dataclass(frozen=True)
class Flavour:
    """A platform.

    Args:
        name: its folder among the recordings.
        storage_image, storage_memory: of the storage initializer, as the platform's configuration has them.
        opendatahub: Open Data Hub's own additions: kube-rbac-proxy in each pod, serving certificates, Routes in place
            of Ingresses.
        domain: of the host names in Ingresses and in the predictor's URL.
    """

    name: str
    storage_image: str
    storage_memory: str
    opendatahub: bool
    domain: str = "example.com"


KSERVE = Flavour("kserve-0.20", "kserve/storage-initializer:latest", "1Gi", opendatahub=False)
OPENDATAHUB = Flavour("opendatahub-3.5", "quay.io/opendatahub/placeholder:odh-v3.5", "24Gi", opendatahub=True)
FLAVOURS = (KSERVE, OPENDATAHUB)
# Recorded under a placeholder: which image it is, is the platform's business.
PROXY_IMAGE = ROUTER_IMAGE = "quay.io/opendatahub/placeholder:odh-v3.5"


def predictor_name(service: Object) -> str:
    """What the predictor's Deployment, Service and HorizontalPodAutoscaler are called."""
    return f"{service['metadata']['name']}-predictor"


def is_stopped(service: Object) -> bool:
    return service["metadata"].get("annotations", {}).get(STOP) == "true"


def is_protected(service: Object) -> bool:
    return service["metadata"].get("annotations", {}).get(AUTH) == "true"
