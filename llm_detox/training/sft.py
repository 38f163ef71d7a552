"""Supervised fine-tuning: LoRA on a (quantised) base or the whole model, for raw and for detoxified text alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling, SFTTrainer

from llm_detox.cluster.train_job import train_on_nodes
from llm_detox.data.records import Record
from llm_detox.progress import say
from llm_detox.recipe import Recipe
from llm_detox.recipe.training import SftSection
from llm_detox.runs.artifacts import TrainedFolder
from llm_detox.runs.folders import StepFolder
from llm_detox.training import distributed
from llm_detox.training.batches import LikeLengthBatches, PackedRows, check_packing, pack
from llm_detox.training.encoding import clean_texts, encode, report_truncation, tokenize, training_texts
from llm_detox.training.library_logging import quiet_libraries
from llm_detox.training.lora import (
    adapters_in_float32,
    load_for_full_training,
    load_training_base,
    new_adapter,
    portable_base,
    resolve_quantization,
    save_adapter,
    save_whole,
)
from llm_detox.training.output_layer import score_labels_only
from llm_detox.training.run import common_arguments, run_training

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
    if distributed.on_other_nodes(recipe):
        return train_on_nodes(recipe, "sft", {"input": texts, **more}, output=output)
    comments, counts = training_texts(texts)
    passages = clean_texts(clean)
    settings, inputs = recipe.settings("model", "training"), {"texts": texts, **more}
    with (distributed.shared_step_folder(output, "adapter", settings=settings, inputs=inputs, resumable=True) as folder,
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
    folder.counts.update(report_truncation(lost, "training.sft.max_length"))
    rows = pack(rows, sft.max_length) if sft.packing else rows
    tell_translations(recipe)
    model: Any
    save: Callable[..., None]
    if sft.method == "full":
        model, save = load_for_full_training(base, recipe.seed), save_whole
    else:
        training = resolve_quantization(recipe.training, base, sft, folder)
        model, save = new_adapter(load_training_base(base, training), training, recipe.seed), save_adapter
    if sft.packing:
        check_packing(model)
    trainer = make_trainer(model, tokenizer, rows, sft, seed=recipe.seed, work=folder.work_file("work"))
    return run_training(trainer, "SFT", folder / TrainedFolder.metrics, remedy=_NAN_REMEDY,
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


def adapts_output_layer(model: PreTrainedModel | PeftModel) -> bool:
    """Whether LoRA changes the output layer, so that logits must be computed through it."""
    return isinstance(model.get_output_embeddings(), BaseTunerLayer)


class TextTrainer(LikeLengthBatches, SFTTrainer):  # type: ignore[misc]
    """TRL's trainer with batches of like length; packed rows bring the number of their tokens along."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        tokens, before = inputs.pop("tokens", None), self._total_train_tokens
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)  # type: ignore[no-untyped-call]
        if tokens is not None:
            self._total_train_tokens = before + _over_processes(self, tokens)
            self._metrics["train"]["num_tokens"] = [self._total_train_tokens]
        return loss


class WholeLogitsTrainer(LikeLengthBatches, Trainer):  # type: ignore[misc]
    """The model's own loss over whole logits: TRL's reads the output layer's weight and would pass an adapter by."""

    _total_train_tokens = 0

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        tokens = inputs.pop("tokens", None)
        self._total_train_tokens += _over_processes(self, inputs["attention_mask"].sum() if tokens is None else tokens)
        return super().compute_loss(
            model, {**inputs, "use_cache": False}, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        super().log({**logs, "num_tokens": float(self._total_train_tokens)}, start_time)


def _over_processes(trainer: Trainer, tokens: Tensor) -> int:
    return int(trainer.accelerator.gather_for_metrics(tokens).sum())
