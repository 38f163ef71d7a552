"""The part of a recipe that is about publishing and serving the model."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from llm_detox.recipe.base import Positive, Section
from llm_detox.recipe.cluster import KubernetesName, Namespace, PodSection


class PublishSection(Section):
    url: str = Field("s3://llm-detox/models", pattern=r"^s3://[^/]+(/.*)?$", description="bucket and prefix")


class KserveSection(PodSection):
    """How the model stands in a cluster. What is not said here stays as in `manifests/`."""

    platform: Literal["openshift-ai", "kserve"] = Field("openshift-ai", description="the overlay in `manifests/`")
    runtime: KubernetesName = Field(
        "llm-detox-caikit-tgis", description="name of the ServingRuntime")
    rollout: Literal["replace", "canary"] = Field(
        "replace", description="canary: the new version comes up and answers beside the old one first (a second GPU)")
    replicas: Positive = Field(1, description="pods")
    rest_url: Annotated[str, Field(pattern=r"^https?://")] | None = Field(
        None, description="where REST answers; None: the address in the InferenceService's status")
    grpc_url: Annotated[str, Field(pattern=r"^grpcs?://")] | None = Field(None, description="the same for gRPC")
    ready_seconds: Positive = Field(1800, description="patience until the model answers")
    pending_seconds: Positive = Field(600, description="patience with pods that no node or quota admits")


class DeploySection(Section):
    target: Literal["local", "kserve"] = Field("local", description="processes on this machine, or a cluster")
    name: str = Field("llm-detox", pattern=r"^[a-z]([-a-z0-9]{0,51}[a-z0-9])?$",
                      description="of the InferenceService, and the id that requests give")
    namespace: Namespace | None = Field(None, description="kserve target; None: the pod's, or the login's")
    prompt: str = Field("The best thing about my neighbours is", description="what the smoke request asks")
    max_new_tokens: Positive = Field(24, description="of the answer to the smoke request")
    rest_port: Annotated[int, Field(ge=0, lt=65536)] = Field(0, description="local target; 0 takes a free one")
    grpc_port: Annotated[int, Field(ge=0, lt=65536)] = Field(0, description="local target; 0 takes a free one")
    kserve: KserveSection = KserveSection()
