"""The part of a recipe that is about training: LoRA, SFT, DPO, and several nodes of a cluster."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from llm_detox.recipe.base import PRECISION, Positive, Precision, Rows, Section, Share
from llm_detox.recipe.cluster import GPU_TAINT, Image, KubernetesName, PodSection, Quantity, Toleration


class TrainJobSection(PodSection):
    """A Kubeflow Trainer job that trains instead of the pipeline's own pod, and what each node gets."""

    image: Image | None = Field(
        None,
        description="The workbench image; `null` takes the image of the pipeline's steps, "
                    "`$LLM_DETOX_WORKBENCH_IMAGE`.")
    nodes: Positive = Field(
        1, description="How many nodes train; with more than one, SFT and DPO run as a TrainJob with torchrun.")
    runtime: KubernetesName = Field(
        "torch-distributed", description="The name of a ClusterTrainingRuntime of the torch kind.")
    gpus: int = Field(1, ge=0, description="How many GPUs, and processes, each node has; with 0 it trains on CPUs.")
    cpu: Quantity = Field("4", description="The CPUs of each node.")
    memory: Quantity = Field("32Gi", description="The memory of each node.")
    shm: Quantity | None = Field(
        "8Gi",
        description="The size of `/dev/shm`, which is part of `memory`; `null` leaves it to the container runtime.")
    tolerations: list[Toleration] = Field(
        [GPU_TAINT],
        description="Taints that the pods tolerate, written as in kubectl: `key`, `key=value` or `key:Effect`.")
    restarts: int = Field(
        1, ge=0, description="How often a node that fails is started again before the job is given up.")
    deadline_seconds: Positive = Field(172800, description="A job that takes longer is ended.")


LearningRateSchedule = Literal[
    "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup", "inverse_sqrt"]
# Without those that need settings of their own: exo_pair wants a label smoothing.
PreferenceLoss = Literal[
    "sigmoid", "sigmoid_norm", "hinge", "ipo", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
    "apo_zero", "apo_down", "discopop"]


class LoraSection(Section):
    """The low-rank adapter (Hu et al. 2021)."""

    r: Positive = Field(16, description="The rank of the adapter.")
    alpha: Positive = Field(32, description="The adapter's output is multiplied by `alpha / r`.")
    dropout: Share = Field(0.0, description="The dropout rate of the adapter's inputs.")
    target_modules: list[str] | Literal["all-linear"] = Field(
        "all-linear",
        description="The names of the layers that get an adapter; `all-linear` means all linear layers but the output "
                    "layer.")
    bias: Literal["none", "lora_only"] = Field(
        "none", description="With `lora_only` the biases of the target modules are trained, too.")

    @field_validator("target_modules")
    @classmethod
    def _at_least_one(cls, value: list[str] | str) -> list[str] | str:
        if not value or not all(name.strip() for name in value):
            raise ValueError("the names of layers are needed, or all-linear")
        return value


class OptimisationSection(Section):
    """What SFT and DPO set alike."""

    learning_rate: Annotated[float, Field(gt=0)]
    epochs: Annotated[float, Field(gt=0)] = Field(1, description="How often the data is passed over.")
    max_steps: Positive | None = Field(None, description="The number of steps, instead of `epochs`.")
    batch_size: Positive = Field(8, description="How many texts or pairs are in a batch, over all processes.")
    accumulation: Positive = Field(1, description="How many batches make one step.")
    max_length: Annotated[int, Field(ge=2)] = Field(
        128, description="The length of a text, in tokens; longer texts are cut.")
    warmup_ratio: Share
    warmup_steps: int | None = Field(None, ge=0, description="The number of warm-up steps, instead of `warmup_ratio`.")
    lr_scheduler: LearningRateSchedule = Field("cosine", description="How the learning rate falls after the warm-up.")
    max_grad_norm: Annotated[float, Field(gt=0)] = Field(
        1.0, description="Gradients with a larger norm are scaled down to it.")
    optimizer: Literal["adamw", "paged_adamw_8bit"] = Field(
        "adamw", description="`paged_adamw_8bit` needs less memory.")
    gradient_checkpointing: bool = Field(
        False, description="Whether activations are computed again instead of kept: slower, with less memory.")

    @model_validator(mode="after")
    def _warm_up_within_the_steps(self) -> OptimisationSection:
        if self.max_steps and (self.warmup_steps or 0) > self.max_steps:
            raise ValueError(f"warmup_steps is {self.warmup_steps}, more than max_steps, {self.max_steps}")
        return self


class SftSection(OptimisationSection):
    """Supervised fine-tuning on texts."""

    learning_rate: Annotated[float, Field(gt=0)] = Field(2e-4, description="The learning rate at its highest.")
    warmup_ratio: Share = Field(0.03, description="The share of the steps in which the learning rate rises.")
    method: Literal["lora", "full"] = Field(
        "lora", description="`lora` trains an adapter, `full` every weight, without quantisation.")
    packing: bool = Field(
        False, description="Whether several texts share a row of `max_length` tokens; none of them sees another.")
    completion_only: bool = Field(True, description="Whether texts with a prompt teach the completion alone.")


class PairTable(Rows):
    """A preference set: prompts with a preferred and a rejected answer. A plain string is the source."""

    prompt_column: str | None = Field(
        "prompt",
        description="The column with the prompt; with `null` it is the conversation that both texts begin with, up to "
                    "the last answer.")
    chosen_column: str = Field("chosen", description="The column with the preferred answers.")
    rejected_column: str = Field("rejected", description="The column with the rejected answers.")
    count: Positive = Field(1000, description="How many pairs are used at most.")


class DpoSection(OptimisationSection):
    """Preference training (Rafailov et al. 2023)."""

    enabled: bool = Field(
        True, description="With `false` there is no preference training, and the adapter of SFT is the last arm.")
    learning_rate: Annotated[float, Field(gt=0)] = Field(5e-5, description="The learning rate at its highest.")
    max_prompt_length: Positive | None = Field(
        None, description="How many tokens of a prompt's end are kept; `null` keeps half of `max_length`.")
    beta: Annotated[float, Field(gt=0)] = Field(0.1, description="How strongly the model is held near its start.")
    warmup_ratio: Share = Field(0.1, description="The share of the steps in which the learning rate rises.")
    loss: PreferenceLoss = Field("sigmoid", description="The preference loss, by its name in TRL.")
    likelihood_weight: Annotated[float, Field(ge=0)] = Field(
        0.0, description="The weight of the chosen text's likelihood in the loss (RPO).")
    anchor_weight: Annotated[float, Field(ge=0)] = Field(
        0.0, description="The weight of KL(start, model) on the start model's own continuations of clean openings.")
    anchor_samples: Positive = Field(
        400, description="How many such continuations are sampled, if clean text is given.")
    pairs_per_prompt: Positive = Field(1, description="How many pairs are made from one prompt's samples, at most.")
    samples_per_prompt: Positive = Field(8, description="How many continuations of a prompt are sampled.")
    margin: Share = Field(0.3, description="How much less toxic the chosen text must be than the rejected one.")
    max_pairs: int = Field(200, ge=0, description="How many sampled pairs are used at most.")
    rewrite_pairs: int = Field(60, ge=0, description="How many pairs of a rewrite and its original are used at most.")
    pairs: list[PairTable] = Field([], description="Preference sets made elsewhere.")

    @model_validator(mode="after")
    def _room_for_answers(self) -> DpoSection:
        if self.max_prompt_length and self.max_prompt_length >= self.max_length:
            raise ValueError(f"max_prompt_length is {self.max_prompt_length} and leaves no room for an answer in "
                             f"max_length, {self.max_length}")
        return self


class TrainingSection(Section):
    """How models are trained."""

    quantization: Literal["auto", "nf4", "int8", "none"] = Field(
        "nf4", description="How the frozen base under an adapter is quantised; `auto` takes `none` if the memory is "
                           "large enough, else `nf4`.")
    double_quantization: bool = Field(True, description="Whether the scales of `nf4` are quantised, too.")
    precision: Precision = Field(
        "auto", description=f"In what the model computes: {PRECISION} What is trained is float32.")
    checkpoint_minutes: Annotated[float, Field(ge=0)] = Field(
        5.0,
        description="The time between two checkpoints, which is the most that a kill costs; 0 saves after every step.")
    tensorboard: bool = Field(
        False, description="Whether each step's figures are also written as event files to the folder `tensorboard`.")
    job: TrainJobSection = TrainJobSection()
    lora: LoraSection = LoraSection()
    sft: SftSection = SftSection()
    dpo: DpoSection = DpoSection()
