"""Where the steps run in a cluster: GPUs, secrets, certificates, retries and caching.

`STEPS` has the defaults, `placement.yaml` what an administrator sets in their place.

A local run has nothing of this: secrets are environment variables there, and the machine is the machine.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

from kfp import dsl, kubernetes
from kfp.dsl import pipeline_context
from kfp.dsl.graph_component import GraphComponent
from pydantic import Field, ValidationError, field_validator

from components.images import WORKBENCH
from llm_detox.cluster.train_job import CA_FILE, CA_FOLDER, CA_VARIABLES, RUN_VARIABLE
from llm_detox.errors import UsageError
from llm_detox.recipe.base import Section
from llm_detox.recipe.cluster import (
    GPU_RESOURCE,
    GPU_TAINT,
    IMAGE_VARIABLE,
    LOGIN_VARIABLES,
    ConnectionSection,
    KubernetesName,
    Quantity,
    ResourceName,
    Toleration,
    toleration,
)
from llm_detox.recipe.files import parse_yaml
from llm_detox.runs.pipeline_step import ERROR_FILE_VARIABLE

DEFAULT = Path(__file__).with_name("placement.yaml")
_RETRY_SECONDS = "30s"
_TRAINING = ("sft", "dpo")  # with `training.job.nodes` these only watch a job
_RUN_LABEL = "metadata.labels['pipeline/runid']"
# What a container leaves here is in its pod's status: `outcome` reads the step's own error there.
_LAST_WORDS = "/dev/termination-log"
_EARLIER_STEPS = {"settle": "resolve-recipe"}


class Gpu(Section):
    """What a step with GPUs asks of its node."""

    resource: ResourceName = GPU_RESOURCE
    tolerations: list[Toleration] = Field([GPU_TAINT])
    node_selector: dict[str, str] = Field({})


class Step(Section):
    """What one step gets."""

    cpu: Quantity
    memory: Quantity
    gpus: Annotated[int, Field(ge=0)] = 0
    shm: Quantity | None = None
    s3: bool = False
    hub: bool = False
    cache: bool = True
    retries: Annotated[int, Field(ge=0)] = 0


# detoxify and sample come as many times as the run has shards. What changes the world is never taken from the cache.
STEPS = {
    "resolve-recipe": Step(cpu="500m", memory="1Gi", retries=1),
    "data": Step(cpu="2", memory="4Gi", s3=True, hub=True, retries=2),
    "detoxify": Step(cpu="4", memory="24Gi", gpus=1, shm="2Gi", s3=True, hub=True, retries=2),
    "sft": Step(cpu="4", memory="32Gi", gpus=1, shm="4Gi", s3=True, hub=True, retries=1),
    "dpo": Step(cpu="4", memory="32Gi", gpus=1, shm="4Gi", s3=True, hub=True, retries=1),
    "join": Step(cpu="1", memory="4Gi", retries=1),
    "sample": Step(cpu="4", memory="24Gi", gpus=1, shm="2Gi", s3=True, hub=True, retries=2),
    "measure": Step(cpu="4", memory="24Gi", gpus=1, shm="2Gi", s3=True, hub=True, retries=2),
    "train-scorer": Step(cpu="2", memory="8Gi", s3=True, hub=True, retries=1),
    "report": Step(cpu="1", memory="4Gi", retries=1),
    "convert": Step(cpu="2", memory="24Gi", s3=True, hub=True, retries=1),
    "publish": Step(cpu="1", memory="4Gi", s3=True, cache=False, retries=3),
    "deploy": Step(cpu="500m", memory="1Gi", s3=True, cache=False),
    "smoke": Step(cpu="1", memory="4Gi", cache=False, retries=1),
    "outcome": Step(cpu="500m", memory="1Gi", cache=False, retries=1),
}


class Placement(ConnectionSection):
    """What an administrator sets for the steps; the recipe's `cluster` section and `STEPS` say the rest."""

    image_secret: KubernetesName | None = Field(
        "llm-detox-images",
        description="The Secret with the login to the registry that models are published to as images, "
                    "`LLM_DETOX_OCI_TOKEN`, or `LLM_DETOX_OCI_USER` and `LLM_DETOX_OCI_PASSWORD`; it is used if it "
                    "exists.")
    gpu: Gpu = Gpu()
    steps: dict[str, Step] = Field(STEPS)

    @field_validator("steps", mode="before")
    @classmethod
    def _over_the_defaults(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        named = {_EARLIER_STEPS.get(name, name): step for name, step in given.items()}
        if unknown := sorted(named.keys() - STEPS.keys()):
            raise ValueError(f"there is no step {unknown[0]!r}; steps: {', '.join(STEPS)}")
        return {name: {**step.model_dump(), **(named.get(name) or {})} for name, step in STEPS.items()}

    @classmethod
    def load(cls, path: Path = DEFAULT) -> Placement:
        """Read a placement file.

        Raises:
            UsageError: it is not there, not YAML, or has a wrong key or value.
        """
        try:
            return cls.model_validate(parse_yaml(path.read_text("utf-8"), str(path)) or {})
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"the placement cannot be read: {error}", place=str(path),
                             remedy="start from pipelines/placement.yaml") from None
        except ValidationError as error:
            wrong = error.errors()[0]
            key = ".".join(map(str, wrong["loc"]))
            raise UsageError(f"{key}: {wrong['msg']}", place=str(path), remedy="correct the key") from None

    def connected(self, connection: ConnectionSection) -> Placement:
        """With a recipe's Secrets and authority, where the file names none."""
        names = ConnectionSection.model_fields.keys() - self.model_fields_set
        return self.model_copy(update={name: getattr(connection, name) for name in names})

    def without_cache(self) -> Placement:
        """Every step is done anew (the server's own switch does not reach steps inside an exit handler)."""
        steps = {name: step.model_copy(update={"cache": False}) for name, step in self.steps.items()}
        return self.model_copy(update={"steps": steps})

    def with_training_elsewhere(self) -> Placement:
        """For a recipe that trains as a TrainJob: a step that waits for its nodes must not hold a GPU of theirs."""
        watching = {name: self.steps[name].model_copy(update={"gpus": 0, "shm": None})
                    for name in _TRAINING if name in self.steps}
        return self.model_copy(update={"steps": {**self.steps, **watching}})


def placed(pipeline: GraphComponent, placement: Placement) -> GraphComponent:
    """The same pipeline with every task put in its place.

    Raises:
        UsageError: the placement has no entry for a step.
    """
    plain: Callable[..., Any] = pipeline.pipeline_func

    @wraps(plain)
    def put(*args: Any, **kwargs: Any) -> Any:
        outputs = plain(*args, **kwargs)
        for task in pipeline_context.Pipeline.get_default_pipeline().tasks.values():
            _put(task, placement)
        return outputs

    return dsl.pipeline(name=pipeline.name, description=pipeline.description)(put)


def _put(task: dsl.PipelineTask, placement: Placement) -> None:
    name = task.component_spec.name
    step = placement.steps.get(name)
    if step is None:
        raise UsageError("the placement has no entry for a step", place=f"steps.{name}",
                         remedy="add it to the placement file")
    task.set_cpu_request(step.cpu).set_cpu_limit(step.cpu)
    task.set_memory_request(step.memory).set_memory_limit(step.memory)
    task.set_caching_options(step.cache)
    task.set_env_variable(ERROR_FILE_VARIABLE, _LAST_WORDS)
    if step.retries:
        task.set_retry(step.retries, backoff_duration=_RETRY_SECONDS, backoff_factor=2.0)
    if step.gpus:
        _put_on_gpu(task, step, placement.gpu)
    if step.shm:
        kubernetes.empty_dir_mount(task, volume_name="shm", mount_path="/dev/shm", medium="Memory",  # noqa: S108
                                   size_limit=step.shm)
    if step.s3:
        kubernetes.use_secret_as_env(task, placement.s3_secret, {key: key for key in placement.s3_keys})
    if name == "publish" and placement.image_secret:
        kubernetes.use_secret_as_env(task, placement.image_secret, {key: key for key in LOGIN_VARIABLES},
                                     optional=True)
    if step.hub and placement.hub_secret:
        kubernetes.use_secret_as_env(task, placement.hub_secret, {"HF_TOKEN": "HF_TOKEN"}, optional=True)
    if name in _TRAINING:
        task.set_env_variable(IMAGE_VARIABLE, WORKBENCH)
        kubernetes.use_field_path_as_env(task, RUN_VARIABLE, _RUN_LABEL)
    if placement.ca_config_map:
        kubernetes.use_config_map_as_volume(task, placement.ca_config_map, mount_path=CA_FOLDER)
        for variable in CA_VARIABLES:
            task.set_env_variable(variable, CA_FILE)


def _put_on_gpu(task: dsl.PipelineTask, step: Step, gpu: Gpu) -> None:
    task.set_accelerator_type(gpu.resource).set_accelerator_limit(step.gpus)
    for text in gpu.tolerations:
        kubernetes.add_toleration(task, **toleration(text))
    for key, value in gpu.node_selector.items():
        kubernetes.add_node_selector(task, label_key=key, label_value=value)
