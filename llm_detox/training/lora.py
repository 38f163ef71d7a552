"""The model under training: a frozen base, 4-bit where the recipe says so, with LoRA adapters (QLoRA, Dettmers 2023).

Products run in bfloat16 on a GPU and in float32 on a CPU, where bfloat16 ones are two orders slower.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase, set_seed

from llm_detox.errors import DetoxError
from llm_detox.generation.models import (
    compute_dtype,
    device,
    load_model,
    load_tokenizer,
    model_folder,
    read_base_source,
    write_base_source,
)
from llm_detox.recipe import Recipe, TrainingSection

REFERENCE_ADAPTER = "ref"


def load_training_base(source: str, training: TrainingSection) -> PreTrainedModel:
    """The frozen base of a training run, in nf4 (compute type of the device) or unquantised."""
    options: dict[str, Any] = {}
    if training.quantization == "nf4":
        options = {
            "quantization_config": BitsAndBytesConfig(
                load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=training.double_quantization,
                bnb_4bit_compute_dtype=compute_dtype()),
            "device_map": {"": device().type},
        }
    model = load_model(source, **options)
    model.config.use_cache = False
    return model


def new_adapter(model: PreTrainedModel, training: TrainingSection, seed: int) -> PeftModel:
    """Put fresh LoRA adapters on the base; the seed decides their first values.

    Raises:
        DetoxError: a target module of the recipe is not in this model.
    """
    set_seed(seed)
    lora = training.lora
    config = LoraConfig(
        r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=lora.target_modules,
        task_type="CAUSAL_LM")
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        names = {name.rsplit(".", 1)[-1] for name, part in model.named_modules() if isinstance(part, torch.nn.Linear)}
        raise DetoxError(f"no LoRA adapter can be put on this model: {error}", place="training.lora.target_modules",
                         remedy=f"choose among {', '.join(sorted(names))}, or all-linear") from error


def open_adapter(folder: Path, training: TrainingSection) -> PeftModel:
    """The base of a finished adapter folder, quantised as the recipe says, with the adapter trainable on it.

    Raises:
        DetoxError: `folder` is not an adapter folder.
    """
    if not (folder / "adapter_config.json").exists():
        raise DetoxError("no adapter_config.json: this is not an adapter folder", place=str(folder),
                         remedy="give the folder that `llm-detox sft` wrote")
    base = load_training_base(read_base_source(folder), training)
    return PeftModel.from_pretrained(base, str(folder), is_trainable=True)


@contextmanager
def adapters_in_float32(model: PeftModel) -> Iterator[None]:
    """Undo the cast to bfloat16 that a TRL trainer made within the block does to adapters on a quantised base.

    In bfloat16 small updates are lost, DPO does not start at its reference, and a CPU computes two orders slower.
    """
    before = {name: parameter.data for name, parameter in model.named_parameters() if parameter.requires_grad}
    yield
    for name, parameter in model.named_parameters():
        if name in before and parameter.dtype is not before[name].dtype:
            parameter.data = before[name]


def save_adapter(model: PeftModel, tokenizer: PreTrainedTokenizerBase, base_source: str, folder: Path) -> None:
    """Write the adapter named "default", the tokenizer and the note of the base into the folder."""
    model.save_pretrained(str(folder), selected_adapters=["default"])
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card; the report writes the real one
    shutil.rmtree(folder / REFERENCE_ADAPTER, ignore_errors=True)
    tokenizer.save_pretrained(folder)
    write_base_source(folder, base_source)


def portable_base(recipe: Recipe) -> tuple[str, PreTrainedTokenizerBase]:
    """The recipe's base source, found and checked before any work, and its tokenizer with right padding."""
    model_folder(recipe.model.source)
    tokenizer = load_tokenizer(recipe.model.source)
    tokenizer.padding_side = "right"
    return recipe.model.source, tokenizer
