"""Where the steps run in a cluster: GPUs, secrets, certificates, retries and caching, all from one file.

A local run has nothing of this: secrets are environment variables there, and the machine is the machine.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import yaml
from kfp import dsl, kubernetes
from kfp.dsl import pipeline_context
from kfp.dsl.graph_component import GraphComponent
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from components.images import WORKBENCH
from llm_detox.cluster.train_job import IMAGE_VARIABLE, RUN_VARIABLE
from llm_detox.errors import UsageError
from llm_detox.runs.pipeline_step import ERROR_FILE_VARIABLE

DEFAULT = Path(__file__).with_name("placement.yaml")
_CA_FOLDER = "/etc/llm-detox/ca"
_CA_FILE = f"{_CA_FOLDER}/ca-bundle.crt"
_CA_VARIABLES = ("AWS_CA_BUNDLE", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")
_RETRY_SECONDS = "30s"
_TRAINING = ("sft", "dpo")  # with `training.job.nodes` these only watch a job
_RUN_LABEL = "metadata.labels['pipeline/runid']"
# What a container leaves here is in its pod's status: `outcome` reads the step's own error there.
_LAST_WORDS = "/dev/termination-log"

Name = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$")]
Quantity = Annotated[str, Field(pattern=r"^[1-9][0-9]*(\.[0-9]+)?(m|[KMGT]i?)?$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Toleration(_Strict):
    key: str
    operator: Annotated[str, Field(pattern="^(Exists|Equal)$")] = "Exists"
    value: str = ""
    effect: Annotated[str, Field(pattern="^(NoSchedule|PreferNoSchedule|NoExecute)?$")] = ""


class Gpu(_Strict):
    """What a step with GPUs asks of its node."""

    resource: Annotated[str, Field(pattern=r"^[a-z0-9.-]+/[A-Za-z0-9._-]+$")] = "nvidia.com/gpu"
    tolerations: list[Toleration] = []
    node_selector: dict[str, str] = {}


class Step(_Strict):
    """What one step gets."""

    cpu: Quantity
    memory: Quantity
    gpus: Annotated[int, Field(ge=0)] = 0
    shm: Quantity | None = None
    s3: bool = False
    hub: bool = False
    cache: bool = True
    retries: Annotated[int, Field(ge=0)] = 0


class Placement(_Strict):
    """The file as a whole."""

    s3_secret: Name
    s3_keys: list[str]
    hub_secret: Name | None = None
    ca_config_map: Name | None = None
    gpu: Gpu = Gpu()
    steps: dict[str, Step]

    @classmethod
    def load(cls, path: Path = DEFAULT) -> Placement:
        """Read a placement file.

        Raises:
            UsageError: it is not there, not YAML, or has a wrong key or value.
        """
        try:
            return cls.model_validate(yaml.safe_load(path.read_text("utf-8")))
        except (OSError, yaml.YAMLError) as error:
            raise UsageError(f"the placement cannot be read: {error}", place=str(path),
                             remedy="start from pipelines/placement.yaml") from None
        except ValidationError as error:
            wrong = error.errors()[0]
            where = ".".join(map(str, wrong["loc"]))
            raise UsageError(f"{where}: {wrong['msg']}", place=str(path), remedy="correct the key") from None


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
        UsageError: a step of the pipeline has no place.
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
        raise UsageError("a step of the pipeline has no place", place=f"steps.{name}",
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
    if step.hub and placement.hub_secret:
        kubernetes.use_secret_as_env(task, placement.hub_secret, {"HF_TOKEN": "HF_TOKEN"}, optional=True)
    if name in _TRAINING:
        task.set_env_variable(IMAGE_VARIABLE, WORKBENCH)
        kubernetes.use_field_path_as_env(task, RUN_VARIABLE, _RUN_LABEL)
    if placement.ca_config_map:
        kubernetes.use_config_map_as_volume(task, placement.ca_config_map, mount_path=_CA_FOLDER)
        for variable in _CA_VARIABLES:
            task.set_env_variable(variable, _CA_FILE)


def _put_on_gpu(task: dsl.PipelineTask, step: Step, gpu: Gpu) -> None:
    task.set_accelerator_type(gpu.resource).set_accelerator_limit(step.gpus)
    for one in gpu.tolerations:
        kubernetes.add_toleration(task, key=one.key, operator=one.operator, value=one.value or None,
                                  effect=one.effect or None)
    for key, value in gpu.node_selector.items():
        kubernetes.add_node_selector(task, label_key=key, label_value=value)
