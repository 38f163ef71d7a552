"""What a run costs in memory, and the precision that follows: bf16 LoRA is faster than 4-bit where it fits."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from llm_detox.folders import StepFolder
from llm_detox.generation.models import compute_dtype, device, model_folder
from llm_detox.progress import say
from llm_detox.recipe_training import LoraSection, OptimisationSection, TrainingSection
from llm_detox.training import ranks

_HEADROOM = 1.1
_ADAM_BYTES = 16  # float32 weight, gradient and two moments of a trained parameter


def settled(training: TrainingSection, source: str, stage: OptimisationSection, folder: StepFolder, *,
            sides: int = 1) -> TrainingSection:
    """The training section with `precision: auto` decided: without quantisation where the memory allows. Says so.

    The first process decides for all, and a run that goes on keeps to it: what was trained on one base cannot go on
    with another.

    Args:
        source: of the base model.
        stage: its batch size and length count.
        folder: keeps the decision while the run lasts, and gets it into its result as `quantization`.
        sides: sequences to a row; two for preference pairs.
    """
    if training.precision != "auto" or training.quantization == "none":
        return training
    quantization = ranks.from_first(lambda: _decided(training, source, stage, folder.work_file("precision"), sides))
    folder.result["quantization"] = quantization
    return training.model_copy(update={"quantization": quantization})


def _decided(training: TrainingSection, source: str, stage: OptimisationSection, kept: Path, sides: int) -> str:
    if kept.exists():
        return kept.read_text("utf-8")
    needed, free = _HEADROOM * bytes_needed(source, training.lora, stage, sides=sides), free_bytes()
    fits = needed <= free
    name = str(compute_dtype()).removeprefix("torch.")
    choice = f"{name} LoRA without quantisation" if fits else f"LoRA on a base in {training.quantization}"
    say(f"precision auto: {choice}; unquantised it takes about {needed / 2**30:.1f} GiB, "
        f"{free / 2**30:.1f} GiB are free on this {'GPU' if device().type == 'cuda' else 'machine'}")
    chosen = "none" if fits else training.quantization
    kept.write_text(chosen, "utf-8")
    return chosen


def bytes_needed(source: str, lora: LoraSection, stage: OptimisationSection, *, sides: int = 1) -> int:
    """Memory of a LoRA step on an unquantised base, estimated.

    Weights and adapters are counted on the model's shape; activations are 34 h bytes a token and layer in 16 bit
    (Korthikanti et al. 2022, eq. 2, without the attention scores, which are never held), or their inputs alone where
    they are computed again; logits are held in part (the largest share of what is held is counted).
    """
    config = AutoConfig.from_pretrained(model_folder(source)).get_text_config()
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    width = compute_dtype().itemsize
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
