"""The part of a recipe that is about training: LoRA, SFT, DPO, and several nodes of a cluster."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from llm_detox.recipe.base import Positive, Section, Share, Source
from llm_detox.recipe.cluster import GPU_TAINT, KubernetesName, PodSection, Quantity, Toleration


class TrainJobSection(PodSection):
    """A Kubeflow Trainer job in place of training in the pipeline's own pod; each node has these."""

    image: Annotated[str, Field(min_length=1)] | None = Field(
        None, description="of the workbench; null: the one of the pipeline's steps, $LLM_DETOX_WORKBENCH_IMAGE")
    nodes: Positive = Field(1, description="more than one: SFT and DPO run as a TrainJob with torchrun")
    runtime: KubernetesName = Field("torch-distributed", description="a ClusterTrainingRuntime of the torch kind")
    gpus: int = Field(1, ge=0, description="and processes of each node; 0 trains on CPUs")
    cpu: Quantity = Field("4", description="of each node")
    memory: Quantity = Field("32Gi", description="of each node")
    shm: Quantity | None = Field("8Gi", description="of /dev/shm, within `memory`; null: the container runtime's own")
    tolerations: list[Toleration] = Field(
        [GPU_TAINT], description="key, key=value or key:Effect, as kubectl writes taints")
    deadline_seconds: Positive = Field(172800, description="a job that takes longer is ended")


LearningRateSchedule = Literal[
    "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup", "inverse_sqrt"]
# Without those that need settings of their own: exo_pair wants a label smoothing.
PreferenceLoss = Literal[
    "sigmoid", "sigmoid_norm", "hinge", "ipo", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
    "apo_zero", "apo_down", "discopop"]


class LoraSection(Section):
    r: Positive = Field(16, description="rank")
    alpha: Positive = Field(32, description="the adapter counts alpha / r times")
    dropout: Share = Field(0.0, description="of the adapter's inputs")
    target_modules: list[str] | Literal["all-linear"] = Field(
        "all-linear", description="names of layers; all-linear: all but the output layer")
    bias: Literal["none", "lora_only"] = Field("none", description="lora_only: the biases of the target modules too")


class OptimisationSection(Section):
    """What SFT and DPO set alike."""

    learning_rate: Annotated[float, Field(gt=0)]
    epochs: Annotated[float, Field(gt=0)] = Field(1, description="passes over the data")
    max_steps: Positive | None = Field(None, description="in place of epochs")
    batch_size: Positive = Field(8, description="texts or pairs a batch, over all processes")
    accumulation: Positive = Field(1, description="batches to one step")
    max_length: Positive = Field(128, description="tokens of a text; longer ones are cut")
    warmup_ratio: Share
    warmup_steps: int | None = Field(None, ge=0, description="in place of warmup_ratio")
    lr_scheduler: LearningRateSchedule = Field("cosine", description="how the learning rate falls")
    max_grad_norm: Annotated[float, Field(gt=0)] = Field(1.0, description="longer gradients are shortened")
    optimizer: Literal["adamw", "paged_adamw_8bit"] = Field("adamw", description="the second one takes less memory")
    gradient_checkpointing: bool = Field(False, description="compute activations again instead of keeping them")


class SftSection(OptimisationSection):
    learning_rate: Annotated[float, Field(gt=0)] = Field(2e-4, description="at its highest")
    warmup_ratio: Share = Field(0.03, description="of the steps, in which the learning rate rises")
    method: Literal["lora", "full"] = Field("lora", description="full: every weight, unquantised")
    packing: bool = Field(False, description="several texts to a row of max_length, none of which sees another")
    completion_only: bool = Field(True, description="of texts with a prompt, learn the completion alone")


class PairTable(Section):
    """A preference set: `prompt`, and the answers that are preferred and refused."""

    source: Source
    prompt_column: str | None = Field(
        "prompt", description="None: the conversation that both begin with, up to their last answer")
    chosen_column: str = Field("chosen", description="the preferred answers")
    rejected_column: str = Field("rejected", description="the others")
    count: Positive = Field(1000, description="at most so many")


class DpoSection(OptimisationSection):
    enabled: bool = Field(True, description="false: no preference training, the SFT adapter is the last arm")
    learning_rate: Annotated[float, Field(gt=0)] = Field(5e-5, description="at its highest")
    max_prompt_length: Positive | None = Field(
        None, description="tokens of a prompt's end that are kept; None: half of max_length")
    beta: Annotated[float, Field(gt=0)] = Field(0.1, description="how near to its start the model is held")
    warmup_ratio: Share = Field(0.1, description="of the steps, in which the learning rate rises")
    loss: PreferenceLoss = Field("sigmoid", description="a preference loss, as TRL names it")
    likelihood_weight: Annotated[float, Field(ge=0)] = Field(
        0.0, description="weight of the chosen text's likelihood (RPO)")
    anchor_weight: Annotated[float, Field(ge=0)] = Field(
        0.0, description="weight of KL(start || model) on the start's continuations of clean openings")
    anchor_samples: Positive = Field(400, description="how many such continuations, where clean text is given")
    pairs_per_prompt: Positive = Field(1, description="sampled pairs from one prompt, at most")
    samples_per_prompt: Positive = Field(8, description="continuations that pairs are chosen from")
    margin: Share = Field(0.3, description="least difference of toxicity between rejected and chosen")
    max_pairs: int = Field(200, ge=0, description="at most so many sampled pairs")
    rewrite_pairs: int = Field(60, ge=0, description="at most so many pairs rewrite against original")
    pairs: list[PairTable] = Field([], description="preference sets made elsewhere")


class TrainingSection(Section):
    quantization: Literal["nf4", "int8", "none"] = Field("nf4", description="of the frozen base under LoRA")
    double_quantization: bool = Field(True, description="of nf4: the scales are quantised, too")
    precision: Literal["bf16", "auto"] = Field(
        "bf16", description="products in bfloat16 (on CPUs float32); auto: and no quantisation where the memory allows")
    checkpoint_minutes: Annotated[float, Field(ge=0)] = Field(
        5.0, description="between two checkpoints: what a kill costs at most; 0 saves after every step")
    tensorboard: bool = Field(False, description="the figures of each step as event files, too, in `tensorboard`")
    job: TrainJobSection = TrainJobSection()
    lora: LoraSection = LoraSection()
    sft: SftSection = SftSection()
    dpo: DpoSection = DpoSection()
