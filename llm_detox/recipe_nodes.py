"""The part of a recipe that is about training on several nodes of a cluster."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from llm_detox.recipe_base import Positive, Section

Amount = Annotated[str, Field(pattern=r"^[1-9][0-9]*(\.[0-9]+)?(m|[KMGTPE]i?|k)?$")]
Name = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$")]


class TrainJobSection(Section):
    """A Kubeflow Trainer job in place of training in the pipeline's own pod; each node has these."""

    image: Annotated[str, Field(min_length=1)] | None = Field(
        None, description="of the workbench; null: the one of the pipeline's steps, $LLM_DETOX_WORKBENCH_IMAGE")
    nodes: Positive = Field(1, description="more than one: SFT and DPO run as a TrainJob with torchrun")
    runtime: Name = Field("torch-distributed", description="a ClusterTrainingRuntime of the torch kind")
    gpus: int = Field(1, ge=0, description="and processes; 0 trains on CPUs")
    gpu_resource: Annotated[str, Field(pattern=r"^[a-z0-9.-]+/[a-zA-Z0-9._-]+$")] = Field(
        "nvidia.com/gpu", description="what the cluster calls its GPUs")
    cpu: Amount = Field("4", description="of each node")
    memory: Amount = Field("32Gi", description="of each node")
    shm: Amount | None = Field("8Gi", description="of /dev/shm, within `memory`; null: the container runtime's own")
    tolerations: list[Annotated[str, Field(
        pattern=r"^[a-zA-Z0-9./_-]+(=[a-zA-Z0-9._-]*)?(:(NoSchedule|PreferNoSchedule|NoExecute))?$")]] = Field(
        ["nvidia.com/gpu:NoSchedule"], description="key, key=value or key:Effect, as kubectl writes taints")
    node_selector: dict[str, str] = Field({}, description="labels that a node must have")
    s3_secret: Name = Field("llm-detox-s3", description="the store's keys, as manifests/connection makes them")
    hub_secret: Name = Field("llm-detox-hub", description="HF_TOKEN for gated models; used where it is there")
    ca_config_map: Name | None = Field(None, description="an own authority, as manifests/components/custom-ca makes it")
    account: Name = Field("llm-detox-model", description="of the nodes' pods; it needs no rights")
    deadline_seconds: Positive = Field(172800, description="a job that takes longer is ended")
