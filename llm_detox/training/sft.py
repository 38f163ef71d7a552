"""Supervised fine-tuning: LoRA on a (quantised) base or the whole model, for raw and for detoxified text alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from llm_detox.data.records import Record
from llm_detox.deploy.train_job import train_on_nodes
from llm_detox.folders import StepFolder
from llm_detox.progress import say
from llm_detox.recipe import Recipe, SftSection
from llm_detox.training import ranks
from llm_detox.training.lora import (
    adapters_in_float32,
    load_for_full_training,
    load_training_base,
    new_adapter,
    portable_base,
    save_adapter,
    save_whole,
)
from llm_detox.training.output_layer import score_labels_only
from llm_detox.training.packing import PackedRows, check_packing, pack
from llm_detox.training.precision import settled
from llm_detox.training.quiet import quiet_libraries
from llm_detox.training.run import common_arguments, run_training
from llm_detox.training.sft_trainers import TextTrainer, WholeLogitsTrainer, adapts_output_layer
from llm_detox.training.texts import clean_texts, encode, tell_cut, tokenize, training_texts

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
    more = {"clean": clean} if clean else {}
    if ranks.on_other_nodes(recipe):
        return train_on_nodes(recipe, "sft", {"input": texts, **more}, output=output)
    comments, counts = training_texts(texts)
    passages = clean_texts(clean)
    settings, inputs = recipe.settings("model", "training"), {"texts": texts, **more}
    with (ranks.shared_step_folder(output, "adapter", settings=settings, inputs=inputs, resumable=True) as folder,
          quiet_libraries()):
        folder.counts.update(counts, clean=len(passages))
        folder.result.update(_train(recipe, comments, passages, folder), **folder.counts)
        return folder.result


def tell_translations(recipe: Recipe) -> None:
    """Say where the recipe departs from its published source, and why."""
    for one in recipe.translations:
        say(f"the source has {one.source}; here {one.here}: {one.reason}")


def _train(recipe: Recipe, comments: list[Record], passages: list[str], folder: StepFolder) -> dict[str, Any]:
    base, tokenizer = portable_base(recipe)
    sft = recipe.training.sft
    lost = Counter[str]()
    rows = encode(tokenizer, comments, sft.max_length, completion_only=sft.completion_only, counts=lost)
    rows += tokenize(tokenizer, passages, sft.max_length, lost)
    folder.counts.update(tell_cut(lost, "training.sft.max_length"))
    rows = pack(rows, sft.max_length) if sft.packing else rows
    tell_translations(recipe)
    model: Any
    save: Callable[..., None]
    if sft.method == "full":
        model, save = load_for_full_training(base, recipe.seed), save_whole
    else:
        training = settled(recipe.training, base, sft, folder)
        model, save = new_adapter(load_training_base(base, training), training, recipe.seed), save_adapter
    if sft.packing:
        check_packing(model)
    trainer = make_trainer(model, tokenizer, rows, sft, seed=recipe.seed, work=folder.work_file("work"))
    return run_training(trainer, "SFT", folder / "metrics.jsonl", remedy=_NAN_REMEDY,
                        settings=recipe.training,
                        save=lambda: save(model, tokenizer, base, folder.path))


def make_trainer(model: PeftModel | PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[dict[str, Any]],
                 sft: SftSection, *, seed: int, work: Path) -> Trainer:
    """The trainer for token rows (`encode`, `pack`). Sequences of like length share a batch: little is padding."""
    arguments = SFTConfig(**common_arguments(sft, steps_of=len(rows), seed=seed, work=work),
                          max_length=sft.max_length, dataset_kwargs={"skip_prepare_dataset": True})
    pad = int(tokenizer.pad_token_id)  # type: ignore[arg-type]
    options: dict[str, Any] = {
        "model": model, "args": arguments, "train_dataset": Dataset.from_list(rows), "processing_class": tokenizer,
        "data_collator": PackedRows(pad) if sft.packing else DataCollatorForLanguageModeling(pad)}
    if adapts_output_layer(model):
        return WholeLogitsTrainer(**options)
    with adapters_in_float32(model):
        trainer = TextTrainer(**options)
    score_labels_only(model)
    return trainer
