"""The part of a recipe that is about publishing and serving the model."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from llm_detox.recipe.addresses import check_image, check_publish_url, check_url
from llm_detox.recipe.base import Positive, Section
from llm_detox.recipe.cluster import KubernetesName, Namespace, PodSection


class PublishSection(Section):
    """Where a model that passes the gate is published."""

    url: Annotated[str, AfterValidator(check_publish_url)] = Field(
        "s3://llm-detox/models",
        description="The bucket and the prefix in it, `s3://bucket/prefix`; a bucket's name has small letters, digits, "
                    "hyphens and single dots. Or `oci://registry/repository` or `oci://registry/repository:tag`: the "
                    "model becomes an image; without a tag, that is the digest of the content.")
    base_image: Annotated[str, AfterValidator(check_image)] | None = Field(
        None,
        description="The image that a model published to `oci://` is put on: `oci://registry/repository@sha256:...`. "
                    "KServe's modelcars need one with `sh`, `ln`, `ls` and `sleep`. Its modes `native` and `fetch` do "
                    "not: `null` makes an image of the model alone.")


def _switch_text(value: Any) -> Any:
    """YAML reads the bare words `on` and `off` as booleans."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


Switch = Annotated[Literal["keep", "on", "off"], BeforeValidator(_switch_text)]


def _rest_url(value: str) -> str:
    return check_url(value, ("https", "http"))


def _grpc_url(value: str) -> str:
    return check_url(value, ("grpcs", "grpc"))


class KserveSection(PodSection):
    """How the model runs in a cluster.

    What is `null` here is as in `manifests/` when the model is made, and afterwards stays as whoever changes it wants
    it: a colleague, the dashboard, an autoscaler.
    """

    platform: Literal["openshift-ai", "kserve"] = Field(
        "openshift-ai", description="The overlay in `manifests/overlays` that is used.")
    serving: Literal["caikit-tgis", "vllm"] = Field(
        "caikit-tgis",
        description="What serves the model: Caikit in front of TGIS (REST and gRPC), or vLLM (the OpenAI API). Both "
                    "read the same published folder.")
    runtime: KubernetesName | None = Field(
        None,
        description="The name of the ServingRuntime, or of a ClusterServingRuntime; `null` takes ours: "
                    "`llm-detox-caikit-tgis` or `llm-detox-vllm`. The platform's own is `vllm-cuda-runtime` or its "
                    "like.")
    auth: Switch = Field(
        "keep",
        description="Whether requests need a token, on OpenShift AI; `keep` leaves it as it is.")
    expose: Switch = Field(
        "keep", description="Whether clients outside of the cluster reach the model; `keep` leaves it as it is.")
    hardware_profile: Annotated[str, Field(pattern=r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?/)?[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")
                                ] | None = Field(
        None,
        description="A hardware profile of OpenShift AI, `name` or `namespace/name`. It then says what GPUs, CPUs and "
                    "memory the pods have, which nodes run them and which queue admits them. `null` leaves that to "
                    "this section, `manifests/` and the dashboard.")
    rollout: Literal["replace", "canary"] = Field(
        "replace",
        description="With `canary` the new version first comes up and answers beside the old one, which needs a second"
                    " GPU.")
    replicas: Positive | None = Field(
        None, description="The number of pods; `null` begins with one and leaves it to others then.")
    rest_url: Annotated[str, AfterValidator(_rest_url)] | None = Field(
        None,
        description="Where REST answers, or with vLLM the OpenAI API, as `https://host:port`; `null` takes the address "
                    "in the InferenceService's status.")
    grpc_url: Annotated[str, AfterValidator(_grpc_url)] | None = Field(
        None, description="Where gRPC answers, as `grpcs://host:port`; `null` takes the address in the "
                          "InferenceService's status.")
    ready_seconds: Positive = Field(1800, description="How long to wait until the model answers.")
    pending_seconds: Positive = Field(600, description="How long to wait for pods that no node or quota admits.")

    @model_validator(mode="after")
    def _sizes_said_once(self) -> KserveSection:
        own = [name for name in ("cpu", "memory", "tolerations", "node_selector", "queue") if getattr(self, name)]
        if self.hardware_profile and own:
            raise ValueError(f"the hardware profile says this: leave out {', '.join(own)}, or hardware_profile")
        if self.hardware_profile and self.platform == "kserve":
            raise ValueError("plain KServe knows no hardware profiles: leave out hardware_profile")
        return self


class DeploySection(Section):
    """How a published model is served."""

    target: Literal["local", "kserve"] = Field(
        "local", description="Whether the model is served by processes on this machine or in a cluster.")
    name: str = Field(
        "llm-detox", pattern=r"^[a-z]([-a-z0-9]{0,51}[a-z0-9])?$",
        description="The name of the InferenceService, and the model id in requests.")
    namespace: Namespace | None = Field(
        None, description="The project, for `kserve`; `null` takes the pod's own, or that of your login.")
    prompt: str = Field("The best thing about my neighbours is", description="What the smoke request asks.")
    max_new_tokens: Positive = Field(
        24, description="The length of the answer to the smoke request, in tokens, at most.")
    rest_port: Annotated[int, Field(ge=0, lt=65536)] = Field(
        0, description="The REST port, for `local`; 0 takes a free port.")
    grpc_port: Annotated[int, Field(ge=0, lt=65536)] = Field(
        0, description="The gRPC port, for `local`; 0 takes a free port.")
    kserve: KserveSection = KserveSection()

    @model_validator(mode="after")
    def _two_ports(self) -> DeploySection:
        if self.rest_port and self.rest_port == self.grpc_port:
            raise ValueError(f"rest_port and grpc_port are both {self.rest_port}: give each a port of its own, or 0")
        return self
