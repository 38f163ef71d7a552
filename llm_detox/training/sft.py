"""Supervised fine-tuning: LoRA on a (quantised) base or the whole model, for raw and for detoxified text alike.

`fine_tune` is the loop of everything that learns from rows of tokens: SFT, paraphrasers and experts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling, SFTTrainer

from llm_detox.cluster.train_job import train_on_nodes
from llm_detox.data.records import Record
from llm_detox.generation.models import resolve_dtype
from llm_detox.progress import say
from llm_detox.recipe import Recipe
from llm_detox.recipe.data import Translation
from llm_detox.recipe.training import SftSection, TrainingSection
from llm_detox.runs.artifacts import TrainedFolder
from llm_detox.training import distributed
from llm_detox.training.batches import (
    LikeLengthBatches,
    PackedBatches,
    PackedRow,
    Seq2SeqBatches,
    check_packing,
    pack,
)
from llm_detox.training.encoding import (
    IGNORED,
    TokenRow,
    clean_texts,
    encode,
    readable_length,
    report_truncation,
    tokenize,
    training_texts,
)
from llm_detox.training.lora import (
    adapters_in_float32,
    load_for_full_training,
    load_training_base,
    load_training_tokenizer,
    new_adapter,
    resolve_quantization,
    save_adapter,
    save_whole,
)
from llm_detox.training.output_layer import score_labels_only
from llm_detox.training.progress_callback import quiet_libraries
from llm_detox.training.run import TrainingResult, run_training, training_arguments

_NAN_REMEDY = "lower training.sft.learning_rate or training.sft.max_grad_norm, and look for odd records in the data"


@dataclass(frozen=True, kw_only=True)
class SftResult(TrainingResult):
    """The figures of a run, and how its records fared."""

    texts: int
    dropped: int
    empty: int
    clean: int
    cut: int
    left_out: int


@dataclass(frozen=True)
class Run:
    """One training: what it is called in messages, where its outcome goes, and what helps when the loss is no number.

    `work` keeps what only an unfinished run needs.
    """

    name: str
    output: Path
    work: Path
    nan_remedy: str


def train_sft(recipe: Recipe, *, texts: Path, clean: Path | None, output: Path) -> SftResult:
    """Tune the recipe's model on the texts and write a LoRA adapter folder; a killed run continues where it stopped.

    Args:
        recipe: its `model` and `training` sections count.
        texts: JSON lines with `text`; records whose `action` is "dropped" are left out.
        clean: harmless passages mixed into the training to keep fluency, JSON lines with `text`; where no text is left
            they are all that is trained on.
        output: the adapter folder to write: adapter, tokenizer, `base.json`, `metrics.jsonl`.

    Raises:
        DetoxError: no text to train on, a loss that is no number, a wrong target module, no room on the disk.
    """
    training, source = recipe.training, recipe.model.source
    inputs = {"texts": texts, **({"clean": clean} if clean else {})}
    if distributed.on_other_nodes(training.job):
        options = {"input" if name == "texts" else name: path for name, path in inputs.items()}
        return SftResult(**train_on_nodes(recipe, "sft", options, output=output))
    passages = clean_texts(clean)
    comments, counts = training_texts(texts, may_be_none=bool(passages))
    if not comments:
        say(f"{texts.name}: no text is left to train on, the {len(passages)} clean passages are all")
    settings = recipe.settings("model", "training")
    with (distributed.shared_step_folder(output, "adapter", settings=settings, inputs=inputs, resumable=True) as folder,
          quiet_libraries()):
        tokenizer, lost = load_training_tokenizer(source), Counter[str]()
        longest = readable_length(training.sft.max_length, source, "training.sft.max_length")
        training = training.model_copy(update={"sft": training.sft.model_copy(update={"max_length": longest})})
        rows = sft_rows(tokenizer, comments, passages, training.sft, lost)
        report_truncation(lost, "training.sft.max_length")
        say_translations(recipe.translations)
        run = Run("SFT", folder.path, folder.work_file("work"), _NAN_REMEDY)
        figures = fine_tune(source, tokenizer, rows, training, run, seed=recipe.seed)
        result = SftResult(**asdict(figures), **asdict(counts), clean=len(passages), cut=lost["cut"],
                           left_out=lost["left_out"])
        folder.counts.update(asdict(counts), clean=result.clean, cut=result.cut, left_out=result.left_out)
        folder.finish(result)
        return result


def say_translations(translations: Sequence[Translation]) -> None:
    """Say where the recipe departs from its published source, and why."""
    for one in translations:
        say(f"the source has {one.source}; here {one.here}: {one.reason}")


def sft_rows(tokenizer: PreTrainedTokenizerBase, comments: Sequence[Record], passages: Sequence[str], sft: SftSection,
             counts: Counter[str]) -> Sequence[TokenRow]:
    """The rows of comments and clean passages, packed where the section says so; `counts` as in `encode`."""
    rows = encode(tokenizer, comments, sft.max_length, completion_only=sft.completion_only, counts=counts)
    rows += tokenize(tokenizer, passages, sft.max_length, counts)
    return pack(rows, sft.max_length) if sft.packing else rows


def fine_tune(source: str, tokenizer: PreTrainedTokenizerBase, rows: Sequence[TokenRow], training: TrainingSection,
              run: Run, *, seed: int) -> TrainingResult:
    """Train a base on rows of tokens and write the adapter, or the whole model, with its `metrics.jsonl`.

    Args:
        source: of the base: causal, or with `training.sft.method: full` also seq2seq.
        tokenizer: of the base.
        rows: as `encode` or `pack` make them.
        training: its `sft` section is the stage.
        run: names and folders.
        seed: for fresh weights, the order of the rows and dropout.

    Raises:
        DetoxError: there is no row, a loss is no number, a wrong target module, no room on the disk.
    """
    dtype, sft = resolve_dtype(training.precision), training.sft
    model: Any
    save: Callable[..., None]
    decided = training
    if sft.method == "full":
        model, save = load_for_full_training(source, seed), save_whole
    else:
        decided = resolve_quantization(training, source, sft, run.work, dtype=dtype)
        model, save = new_adapter(load_training_base(source, decided, dtype), training.lora, seed), save_adapter
    if sft.packing:
        check_packing(model)
    trainer = make_trainer(model, tokenizer, rows, sft, seed=seed, work=run.work, dtype=dtype)
    figures = run_training(trainer, run.name, run.output / TrainedFolder.metrics, remedy=run.nan_remedy,
                           settings=training, save=lambda: save(model, tokenizer, source, run.output))
    return replace(figures, quantization=None if decided is training else decided.quantization)


def make_trainer(model: PeftModel | PreTrainedModel, tokenizer: PreTrainedTokenizerBase,
                 rows: Sequence[TokenRow] | Sequence[PackedRow], sft: SftSection, *, seed: int, work: Path,
                 dtype: torch.dtype | None = None) -> Trainer:
    """The trainer for token rows (`encode`, `pack`). Sequences of like length share a batch: little is padding."""
    arguments = training_arguments(SFTConfig, sft, rows=len(rows), seed=seed, work=work, dtype=dtype,
                                   max_length=sft.max_length, dataset_kwargs={"skip_prepare_dataset": True})
    pad = int(tokenizer.pad_token_id)  # type: ignore[arg-type]
    data = Dataset.from_list(list(rows))
    if model.config.is_encoder_decoder:
        return WholeLogitsTrainer(model=model, args=arguments, train_dataset=data, processing_class=tokenizer,
                                  data_collator=Seq2SeqBatches(model, pad), compute_loss_func=target_loss)
    collator = PackedBatches(pad) if sft.packing else DataCollatorForLanguageModeling(pad)
    if adapts_output_layer(model):
        return WholeLogitsTrainer(model=model, args=arguments, train_dataset=data, processing_class=tokenizer,
                                  data_collator=collator)
    with adapters_in_float32(model):
        trainer = TextTrainer(model=model, args=arguments, train_dataset=data, processing_class=tokenizer,
                              data_collator=collator)
    score_labels_only(model)
    return trainer


def adapts_output_layer(model: PreTrainedModel | PeftModel) -> bool:
    """Whether LoRA changes the output layer, so that logits must be computed through it."""
    return isinstance(model.get_output_embeddings(), BaseTunerLayer)


def target_loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
    """Mean cross entropy of a seq2seq model's target, over the tokens of all processes.

    Args:
        outputs: with `logits` [b, m, vocabulary].
        labels: [b, m] token ids, IGNORED where nothing counts.
        num_items_in_batch: tokens that count in the step; None: those of this batch.
    """
    total = torch.nn.functional.cross_entropy(outputs.logits.flatten(0, 1).float(), labels.flatten(),
                                              ignore_index=IGNORED, reduction="sum")
    return total / ((labels != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch)


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
    """The model's own loss over whole logits: TRL's reads the output layer's weight and would miss its adapter."""

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
