"""Supervised fine-tuning: TRL's SFTTrainer on a QLoRA base, for raw and for detoxified text alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedTokenizerBase
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from llm_detox.folders import StepFolder
from llm_detox.recipe import Recipe, SftSection
from llm_detox.training.batches import LikeLengthBatches
from llm_detox.training.lora import adapters_in_float32, load_training_base, new_adapter, portable_base, save_adapter
from llm_detox.training.output_layer import score_labels_only
from llm_detox.training.quiet import quiet_libraries
from llm_detox.training.ranks import shared_step_folder
from llm_detox.training.run import common_arguments, run_training
from llm_detox.training.texts import clean_texts, tokenize, training_texts

_NAN_REMEDY = "lower training.sft.learning_rate or training.sft.max_grad_norm, and look for odd records in the data"


def train_sft(recipe: Recipe, *, texts: Path, clean: Path | None, output: Path) -> dict[str, Any]:
    """Tune the recipe's model on the texts and write a LoRA adapter folder; a killed run goes on where it was.

    Args:
        recipe: its `model` and `training` sections count.
        texts: JSON lines with `text`; records whose `action` is "dropped" are left out.
        clean: harmless passages mixed into the training to keep fluency, JSON lines with `text`.
        output: the adapter folder to write: adapter, tokenizer, `base.json`, `metrics.jsonl`.

    Returns:
        steps, tokens (without padding), first and last loss, seconds, tokens_per_second and the counts of records.

    Raises:
        DetoxError: no text to train on, a loss that is no number, a wrong target module, no room on the disk.
    """
    comments, counts = training_texts(texts)
    passages = clean_texts(clean)
    inputs = {"texts": texts, **({"clean": clean} if clean else {})}
    settings = recipe.settings("model", "training")
    with (shared_step_folder(output, "adapter", settings=settings, inputs=inputs, resumable=True) as folder,
          quiet_libraries()):
        folder.counts.update(counts, clean=len(passages))
        folder.result.update(_train(recipe, comments, passages, folder), **folder.counts)
        return folder.result


def _train(recipe: Recipe, comments: list[str], passages: list[str], folder: StepFolder) -> dict[str, Any]:
    base, tokenizer = portable_base(recipe)
    sft = recipe.training.sft
    rows = tokenize(tokenizer, comments, sft.max_length) + tokenize(tokenizer, passages, sft.max_length)
    model = new_adapter(load_training_base(base, recipe.training), recipe.training, recipe.seed)
    trainer = make_trainer(model, tokenizer, rows, sft, seed=recipe.seed, work=folder / "work")
    return run_training(trainer, "SFT", folder / "metrics.jsonl", remedy=_NAN_REMEDY,
                        minutes=recipe.training.checkpoint_minutes,
                        save=lambda: save_adapter(model, tokenizer, base, folder.path))


class _TextTrainer(LikeLengthBatches, SFTTrainer):  # type: ignore[misc]
    """TRL's trainer with batches of like length."""


def make_trainer(model: PeftModel, tokenizer: PreTrainedTokenizerBase, rows: list[dict[str, Any]], sft: SftSection, *,
                 seed: int, work: Path) -> SFTTrainer:
    """TRL's trainer for token rows (`tokenize`). Sequences of like length share a batch, so little is padding."""
    arguments = SFTConfig(
        **common_arguments(sft, steps_of=len(rows), seed=seed, work=work), max_length=sft.max_length)
    with adapters_in_float32(model):
        trainer = _TextTrainer(model=model, args=arguments, train_dataset=Dataset.from_list(rows),
                               processing_class=tokenizer)
    score_labels_only(model)
    return trainer
