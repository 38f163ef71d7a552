"""What a recipe says about a Kubernetes cluster: the connection that all its pods share, and what one pod asks for.

`training.job`, `deploy.kserve`, the placement of the pipeline's steps and doctor take their settings from here.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, field_validator

from llm_detox.recipe.base import Section

WORKBENCH_IMAGE = "quay.io/llm-detox/workbench-python:0.1.0"  # of the pipeline's steps
IMAGE_VARIABLE = "LLM_DETOX_WORKBENCH_IMAGE"  # replaces it, in a pod and when the pipelines are compiled
LOGIN_VARIABLES = ("LLM_DETOX_OCI_TOKEN", "LLM_DETOX_OCI_USER", "LLM_DETOX_OCI_PASSWORD")  # to a registry of images
GPU_RESOURCE = "nvidia.com/gpu"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
GPU_TAINT = f"{GPU_RESOURCE}:NoSchedule"
LABEL_PATTERN = r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"  # RFC 1123, as namespaces and host names have it
_TOLERATION_KEYS = {"key", "operator", "value", "effect"}


def _toleration_text(value: Any) -> Any:
    """A toleration as a pod's YAML has it, in the short form."""
    if not isinstance(value, dict) or "key" not in value or not value.keys() <= _TOLERATION_KEYS:
        return value
    equal = f"={value.get('value', '')}" if value.get("operator") == "Equal" else ""
    effect = f":{value['effect']}" if value.get("effect") else ""
    return f"{value['key']}{equal}{effect}"


_LABEL = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_LABEL_PREFIX = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
Image = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@-]*$")]
Quantity = Annotated[str, Field(pattern=r"^[1-9][0-9]*(\.[0-9]+)?(m|[KMGTPE]i?|k)?$")]
KubernetesName = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$")]
Namespace = Annotated[str, Field(pattern=LABEL_PATTERN)]
ResourceName = Annotated[str, Field(pattern=r"^[a-z0-9.-]+/[a-zA-Z0-9._-]+$")]
Toleration = Annotated[str, BeforeValidator(_toleration_text), Field(
    pattern=r"^[a-zA-Z0-9./_-]+(=[a-zA-Z0-9._-]*)?(:(NoSchedule|PreferNoSchedule|NoExecute))?$")]


class ConnectionSection(Section):
    """The names of the Secrets and of the certificate authority in the cluster."""

    s3_secret: KubernetesName = Field(
        "llm-detox-s3", description="The Secret with the store's keys, as `manifests/connection` makes it.")
    s3_keys: list[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]] = Field(
        ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_S3_ENDPOINT", "AWS_DEFAULT_REGION"],
        description="Its keys that become environment variables.")
    hub_secret: KubernetesName | None = Field(
        "llm-detox-hub", description="The Secret with `HF_TOKEN` for gated models; it is used if it exists.")
    ca_config_map: KubernetesName | None = Field(
        None,
        description="The ConfigMap with a certificate authority of your own: `llm-detox-trusted-ca`, as "
                    "`manifests/components/custom-ca` makes it, or the platform's `odh-trusted-ca-bundle` on OpenShift "
                    "AI.")


class PodSection(Section):
    """What one pod asks for, and which nodes may run it."""

    gpus: int | None = Field(1, ge=0, description="The number of GPUs of each pod; `null` takes that of `manifests/`.")
    gpu_resource: ResourceName = Field(GPU_RESOURCE, description="The cluster's name for its GPUs.")
    cpu: Quantity | None = Field(None, description="The CPUs of each pod; `null` takes those of `manifests/`.")
    memory: Quantity | None = Field(None, description="The memory of each pod; `null` takes that of `manifests/`.")
    tolerations: list[Toleration] | None = Field(
        None,
        description="Taints that the pods tolerate, written as in kubectl: `key`, `key=value` or `key:Effect`; `null` "
                    "takes those of `manifests/`.")
    node_selector: dict[str, str] = Field({}, description="The labels that a node must have.")
    account: KubernetesName = Field(
        "llm-detox-model", description="The ServiceAccount of the pods; it needs no rights.")
    queue: KubernetesName | None = Field(
        None, description="The project's queue of Kueue (a LocalQueue) that admits the pods; `null` names none.")

    @field_validator("node_selector")
    @classmethod
    def _of_labels(cls, value: dict[str, str]) -> dict[str, str]:
        for key, wanted in value.items():
            prefix, slash, name = key.rpartition("/")
            if (slash and not _LABEL_PREFIX.fullmatch(prefix)) or not _LABEL.fullmatch(name) or (
                    wanted and not _LABEL.fullmatch(wanted)):
                raise ValueError(f"{key!r:.80} with {wanted!r:.80} is no label of a node")
        return value


def toleration(text: str) -> dict[str, str]:
    """`key`, `key=value`, `key:Effect` or `key=value:Effect` as a pod's YAML has it."""
    taint, _, effect = text.partition(":")
    key, equal, value = taint.partition("=")
    operator = {"operator": "Equal", "value": value} if equal else {"operator": "Exists"}
    return {"key": key, **operator, **({"effect": effect} if effect else {})}
