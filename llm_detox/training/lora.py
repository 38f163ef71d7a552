"""The model under training: a frozen base, quantised where the recipe says so, with LoRA adapters (QLoRA, Dettmers
2023), or the whole model. The outcome is merged into a base in the type that it is stored in, never in 4 bits.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from llm_detox.errors import DetoxError
from llm_detox.export.merge import write_weights
from llm_detox.generation.checks import check_adapter
from llm_detox.generation.models import (
    compute_dtype,
    device,
    load_model,
    load_tokenizer,
    model_folder,
    open_config,
    put_adapter,
    read_base_source,
    write_base_source,
)
from llm_detox.generation.tensor_files import open_tensors, read_object, weight_files
from llm_detox.progress import say
from llm_detox.recipe.training import LoraSection, OptimisationSection, TrainingSection
from llm_detox.rephrase.seq2seq import is_seq2seq, load_seq2seq, load_seq2seq_tokenizer
from llm_detox.runs.artifacts import ModelFolder, TrainedFolder
from llm_detox.training import distributed
from llm_detox.training.distributed import call_by_hooks, sharding_config

REFERENCE_ADAPTER = "ref"


def load_training_base(source: str, training: TrainingSection, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """The frozen base of a training run: quantised as the section says, or as it is, shared out over the processes.

    Args:
        source: of a causal model; an adapter folder comes merged into its base.
        training: its `quantization` must be decided (`resolve_quantization`).
        dtype: of weights that are not quantised, and of products; the default is `compute_dtype()`.
    """
    dtype = dtype or compute_dtype()
    if training.quantization != "none":
        quantization = BitsAndBytesConfig(load_in_8bit=True) if training.quantization == "int8" else BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype,
            bnb_4bit_use_double_quant=training.double_quantization)
        model = load_model(source, dtype=dtype, quantization_config=quantization, device_map={"": device().type})
    elif sharding := sharding_config():
        model = load_model(source, dtype=dtype, distributed_config=sharding)
    else:
        model = load_model(source, dtype=dtype)
    model.config.use_cache = False
    return model


def load_for_full_training(source: str, seed: int) -> PreTrainedModel:
    """The model, causal or seq2seq, with every weight trainable, in float32: bfloat16 ones lose small updates."""
    set_seed(seed)
    model = load_seq2seq(source, dtype=torch.float32) if is_seq2seq(source) else load_model(source, dtype=torch.float32)
    model.config.use_cache = False
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return model


def load_training_tokenizer(source: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a base, with right padding.

    Raises:
        DetoxError: there is no such base, or it is no model folder.
    """
    if is_seq2seq(source):
        return load_seq2seq_tokenizer(source)
    tokenizer = load_tokenizer(source)
    tokenizer.padding_side = "right"
    return tokenizer


def new_adapter(model: PreTrainedModel, lora: LoraSection, seed: int) -> PeftModel:
    """Put fresh LoRA adapters on the base; the seed decides their first values.

    Raises:
        DetoxError: a target module of the recipe is not in this model.
    """
    set_seed(seed)
    config = LoraConfig(
        r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=lora.target_modules,
        bias=lora.bias, task_type="CAUSAL_LM")
    try:
        adapted = get_peft_model(model, config)
    except ValueError as error:
        names = {name.rsplit(".", 1)[-1] for name, part in model.named_modules() if isinstance(part, torch.nn.Linear)}
        raise DetoxError(f"no LoRA adapter can be put on this model: {error}", place="lora.target_modules",
                         remedy=f"choose among {', '.join(sorted(names))}, or all-linear") from error
    if not any(name.endswith(".bias") for name, part in adapted.named_parameters() if part.requires_grad):
        config.bias = "none"  # as in a Llama: then the adapter can be merged by all readers
    call_by_hooks(adapted)  # type: ignore[arg-type]
    return adapted  # type: ignore[return-value]


def open_adapter(folder: Path, training: TrainingSection, seed: int = 0, dtype: torch.dtype | None = None) -> PeftModel:
    """The base of a finished training folder, quantised as the recipe says, with its adapter trainable on it.

    A fully trained model gets a fresh adapter, which changes nothing yet.

    Raises:
        DetoxError: `folder` is not of a training step.
    """
    if is_whole_model(folder):
        return new_adapter(load_training_base(str(folder), training, dtype), training.lora, seed)
    if not TrainedFolder(folder).is_adapter:
        raise DetoxError("no adapter_config.json: this is not an adapter folder", place=str(folder),
                         remedy="give the folder that `llm-detox sft` wrote")
    base = load_training_base(read_base_source(folder), training, dtype)
    check_adapter(folder)
    model = put_adapter(base, folder, trainable=True)
    call_by_hooks(model)
    return model


def is_whole_model(folder: Path) -> bool:
    """Whether a training step wrote a whole model there, and no adapter."""
    return TrainedFolder(folder).base.exists() and not TrainedFolder(folder).is_adapter


@contextmanager
def adapters_in_float32(model: PeftModel | PreTrainedModel) -> Iterator[None]:
    """Undo the cast to bfloat16 that a TRL trainer made within the block does to adapters on a quantised base.

    In bfloat16 small updates are lost, DPO does not start at its reference, and a CPU computes two orders slower.
    """
    before = {name: parameter.data for name, parameter in model.named_parameters() if parameter.requires_grad}
    yield
    for name, parameter in model.named_parameters():
        if name in before and parameter.dtype is not before[name].dtype:
            parameter.data = before[name]


def save_adapter(model: PeftModel, tokenizer: PreTrainedTokenizerBase, base_source: str, folder: Path) -> None:
    """Write the adapter named "default", the tokenizer and the note of the base into the folder.

    All processes of a run call it, since each has a part of a sharded base; the first one writes.
    """
    model.save_pretrained(str(folder), selected_adapters=["default"], save_embedding_layers=False,
                          is_main_process=distributed.is_first())
    if not distributed.is_first():
        return
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card; the report writes the real one
    shutil.rmtree(folder / REFERENCE_ADAPTER, ignore_errors=True)
    tokenizer.save_pretrained(folder)
    write_base_source(folder, base_source)


def save_whole(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, base_source: str, folder: Path) -> None:
    """Write a fully trained model in the type of its base, the tokenizer and the note of the base."""
    if not distributed.is_first():
        return
    model.to(stored_dtype(model_folder(base_source)))  # type: ignore[arg-type]
    model.config.use_cache = True
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_base_source(folder, base_source)


def stored_dtype(folder: Path) -> torch.dtype:
    """The type in which a model folder stores its weights, by its configuration, else by the first tensor."""
    config = read_object(ModelFolder(folder).config)
    if name := config.get("dtype") or config.get("torch_dtype"):
        dtype: torch.dtype = getattr(torch, name)
        return dtype
    header = open_tensors(weight_files(folder)[0]).header
    return {"F32": torch.float32, "F16": torch.float16}.get(next(iter(header.values()))["dtype"], torch.bfloat16)


def save_merged(model: PeftModel, tokenizer: PreTrainedTokenizerBase, base: Path, folder: Path) -> None:
    """Write the whole model of a step folder with a further adapter merged in: later steps need one folder alone."""
    if not distributed.is_first():
        return
    adapter = folder / "adapter"
    model.save_pretrained(str(adapter), selected_adapters=["default"], save_embedding_layers=False)
    write_weights(base, [adapter], folder)
    shutil.rmtree(adapter)
    for name in (ModelFolder.config, ModelFolder.generation_config):
        if (base / name).exists():
            shutil.copyfile(base / name, folder / name)
    tokenizer.save_pretrained(folder)
    write_base_source(folder, read_base_source(base))


_HEADROOM = 1.1
_ADAM_BYTES = 16  # float32 weight, gradient and two moments of a trained parameter


def resolve_quantization(training: TrainingSection, source: str, stage: OptimisationSection, work: Path, *,
                         dtype: torch.dtype | None = None, sides: int = 1) -> TrainingSection:
    """The training section with `quantization: auto` decided: none where the memory allows, else nf4. Says so.

    The first process decides for all, and a run that continues keeps to it: what was trained on one base cannot
    continue on another.

    Args:
        source: of the base model.
        stage: its batch size and length count.
        work: keeps the decision while the run lasts.
        dtype: of the unquantised base; the default is `compute_dtype()`.
        sides: sequences to a row; two for preference pairs.
    """
    if training.quantization != "auto":
        return training
    needed = int(_HEADROOM * bytes_needed(source, training.lora, stage, dtype=dtype, sides=sides))
    return training.model_copy(update={
        "quantization": distributed.from_first(lambda: _stored_choice(work / "quantization", needed, dtype))})


def _stored_choice(path: Path, needed: int, dtype: torch.dtype | None) -> str:
    """The choice of an earlier run from its file, or a new one."""
    if path.exists():
        return path.read_text("utf-8")
    free = free_bytes()
    choice = "none" if needed <= free else "nf4"
    name = str(dtype or compute_dtype()).removeprefix("torch.")
    text = f"LoRA on a base in {choice}" if needed > free else f"{name} LoRA without quantisation"
    say(f"quantization auto: {text}; unquantised it takes about {needed / 2**30:.1f} GiB, "
        f"{free / 2**30:.1f} GiB are free on this {'GPU' if device().type == 'cuda' else 'machine'}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(choice, "utf-8")
    return choice


def bytes_needed(source: str, lora: LoraSection, stage: OptimisationSection, *, dtype: torch.dtype | None = None,
                 sides: int = 1) -> int:
    """Memory of a LoRA step on an unquantised base, estimated.

    Weights and adapters are counted on the model's shape; activations are 34 h bytes a token and layer in 16 bit
    (Korthikanti et al. 2022, eq. 2, without the attention scores, which are never held), or their inputs alone where
    they are computed again; logits are held in part (the largest share of what is held is counted).
    """
    config = open_config(model_folder(source)).get_text_config()
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    width = (dtype or compute_dtype()).itemsize
    parameters = sum(parameter.numel() for parameter in model.parameters())
    sizes = [part.in_features + part.out_features for part in model.modules() if isinstance(part, torch.nn.Linear)]
    tokens = sides * stage.batch_size * stage.max_length
    a_token = config.hidden_size * config.num_hidden_layers * width * (1 if stage.gradient_checkpointing else 17)
    logits = min(tokens, 4096) * config.vocab_size * (width + 4)
    return int(parameters * width + lora.r * sum(sizes) * _ADAM_BYTES + tokens * a_token + logits)


def free_bytes() -> int:
    """Memory that is free on the device of the training."""
    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0])
    import psutil  # type: ignore[import-untyped,unused-ignore]

    return int(psutil.virtual_memory().available)
