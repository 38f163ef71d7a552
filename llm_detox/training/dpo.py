"""Direct preference optimisation (Rafailov et al. 2023) of the SFT adapter, with TRL's DPOTrainer.

The reference is a frozen copy of the adapter; its log-probabilities are computed once, before training.

An anchor holds the model where it started on harmless text: added to the preference loss is KL(start || now) over the
whole next-token distribution, averaged over the tokens of the start model's own continuations of harmless openings. It
weighs what the model says there as often as it says it (Ziegler et al. 2019, eq. 2, has such a penalty on all samples,
and the other way round).
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypedDict, cast

import torch
from datasets import Dataset
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.utils import use_adapter

from llm_detox.cluster.train_job import train_on_nodes
from llm_detox.data.records import Record, read_jsonl, write_jsonl
from llm_detox.errors import DetoxError
from llm_detox.generation.models import load_model, load_tokenizer, read_base_source, resolve_dtype
from llm_detox.generation.sampling import sample_continuations
from llm_detox.progress import say, task
from llm_detox.recipe import Recipe
from llm_detox.recipe.evaluation import SamplingSection
from llm_detox.recipe.training import DpoSection, TrainingSection
from llm_detox.runs.artifacts import TrainedFolder
from llm_detox.runs.folders import MANIFEST, StepFolder
from llm_detox.training import distributed
from llm_detox.training.batches import LikeLengthBatches, padded
from llm_detox.training.encoding import clean_texts, readable_length, report_truncation
from llm_detox.training.lora import (
    REFERENCE_ADAPTER,
    adapters_in_float32,
    is_whole_model,
    open_adapter,
    resolve_quantization,
    save_adapter,
    save_merged,
)
from llm_detox.training.output_layer import score_labels_only
from llm_detox.training.pairs import Pair, make_pairs, pair_counts
from llm_detox.training.progress_callback import quiet_libraries
from llm_detox.training.run import TrainingResult, run_training, training_arguments
from llm_detox.training.sft import say_translations

_NAN_REMEDY = "lower training.dpo.learning_rate or raise training.dpo.beta"
_OPENING_WORDS = range(3, 13)  # as many in turn: a continuation may begin anywhere in a sentence
_NEW_TOKENS = 32


@dataclass(frozen=True)
class Truncation:
    """Pairs that lost the end of an answer to `max_length`, and those of which nothing was left."""

    cut: int
    left_out: int


@dataclass(frozen=True, kw_only=True)
class DpoResult(TrainingResult, Truncation):
    """The figures of a run, and the number of pairs of each kind."""

    pairs: dict[str, int]


@dataclass(frozen=True)
class NoPreferenceTraining:
    """The recipe has none: the outcome of SFT was passed on."""

    enabled: Literal[False] = False


def train_dpo(
    recipe: Recipe, *, adapter: Path, records: Path | None, prompts: Path | None, clean: Path | None, output: Path
) -> DpoResult | NoPreferenceTraining:
    """Train the SFT adapter further on preference pairs and write a LoRA adapter folder for the same base.

    A killed run continues where it stopped, with the pairs that it had made.

    Args:
        recipe: its `model`, `training`, `scoring.training` and `evaluation.sampling` parts count.
        adapter: the adapter folder that `train_sft` wrote: start and reference of the training.
        records: detoxify's records, for the pairs rewrite against original; None where `rewrite_pairs` is 0.
        prompts: prompts whose sampled continuations make the other pairs; not those of the evaluation. None where
            `max_pairs` is 0.
        clean: harmless passages, JSON lines with `text`: on continuations of their openings the model stays where it
            was (`anchor_weight`).
        output: the adapter folder to write; with `pairs.jsonl`, `metrics.jsonl`.

    Raises:
        DetoxError: no pair could be made, a loss that is no number, `adapter` is no adapter folder.
    """
    training, dpo = recipe.training, recipe.training.dpo
    optional = {"adapter": adapter, "records": records, "prompts": prompts, "clean": clean}
    inputs = {name: path for name, path in optional.items() if path}
    if dpo.enabled and distributed.on_other_nodes(training.job):
        return DpoResult(**train_on_nodes(recipe, "dpo", inputs, output=output))
    settings = recipe.settings("model", "training", "scoring", "evaluation")
    if not dpo.enabled:
        with distributed.shared_step_folder(output, "adapter", settings=settings, inputs=inputs) as folder:
            return _pass_on(adapter, folder)
    with (distributed.shared_step_folder(output, "adapter", settings=settings, inputs=inputs, resumable=True) as folder,
          quiet_libraries()):
        sampling, seed = recipe.evaluation.sampling, recipe.seed
        pairs = [Pair(**record) for record in distributed.from_first(lambda: _kept(folder, "pairs", lambda: [
            pair.as_record() for pair in make_pairs(dpo, adapter=adapter, records=records, prompts=prompts,
                                                    sampling=sampling, scorer=recipe.scoring.training, seed=seed)]))]
        anchor = [record["text"] for record in distributed.from_first(lambda: _kept(folder, "anchor", lambda: [
            {"text": text} for text in _anchor_texts(dpo, adapter, clean, sampling, seed)]))]
        folder.counts.update(pair_counts(pairs, dpo))
        say_translations(recipe.translations)
        figures, truncation = _optimise(adapter, pairs, anchor, training, folder, seed=seed)
        result = DpoResult(**asdict(truncation), **asdict(figures), pairs=dict(folder.counts))
        folder.finish(result)
        return result


def _pass_on(adapter: Path, folder: StepFolder) -> NoPreferenceTraining:
    """The SFT outcome is the last arm's where a recipe has no preference training."""
    say("no preference training in this recipe (training.dpo.enabled): the SFT outcome is the last arm's")
    if distributed.is_first():
        shutil.copytree(adapter, folder.path, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MANIFEST))
    result = NoPreferenceTraining()
    folder.finish(result)
    return result


def _kept(folder: StepFolder, name: str, make: Callable[[], list[Record]]) -> list[Record]:
    """The records that an interrupted run left in its folder, or new ones."""
    kept, unfinished = folder / f"{name}.jsonl", folder / f"{name}.part"
    if not kept.exists():
        write_jsonl(unfinished, make())
        unfinished.rename(kept)
    return list(read_jsonl(kept))


def _anchor_texts(
    dpo: DpoSection, adapter: Path, clean: Path | None, sampling: SamplingSection, seed: int
) -> list[str]:
    if clean is None or not dpo.anchor_weight:
        return []
    if is_whole_model(adapter):
        raise DetoxError("only an adapter can be held where it started: a whole model keeps no copy of its start",
                         place="training.dpo.anchor_weight", remedy="set it to 0, or training.sft.method: lora")
    return own_continuations(adapter, clean_texts(clean), count=dpo.anchor_samples, sampling=sampling, seed=seed)


def _optimise(adapter: Path, pairs: Sequence[Pair], anchor_texts: Sequence[str], training: TrainingSection,
              folder: StepFolder, *, seed: int) -> tuple[TrainingResult, Truncation]:
    """Train on the pairs and write the outcome into the folder."""
    dtype, work = resolve_dtype(training.precision), folder.work_file("work")
    longest = readable_length(training.dpo.max_length, str(adapter), "training.dpo.max_length")
    dpo = training.dpo.model_copy(update={"max_length": longest})
    tokenizer = load_tokenizer(adapter)
    base, whole = read_base_source(adapter), is_whole_model(adapter)
    decided = resolve_quantization(training, str(adapter) if whole else base, dpo, work, dtype=dtype, sides=2)
    model = open_adapter(adapter, decided, seed, dtype)
    lost = Counter[str]()
    rows = pair_rows(tokenizer, pairs, dpo.max_length, dpo.max_prompt_length, lost)
    report_truncation(lost, "training.dpo.max_length")
    anchor = anchor_rows(tokenizer, anchor_texts, dpo.max_length)
    trainer = make_trainer(model, tokenizer, rows, dpo, anchor=anchor, seed=seed, work=work, dtype=dtype)

    def save() -> None:
        if whole:
            save_merged(model, tokenizer, adapter, folder.path)
        else:
            save_adapter(model, tokenizer, base, folder.path)

    figures = run_training(trainer, "DPO", folder / TrainedFolder.metrics, remedy=_NAN_REMEDY, settings=training,
                           save=save)
    return (replace(figures, quantization=None if decided is training else decided.quantization),
            Truncation(lost["cut"], lost["left_out"]))


class PairRow(TypedDict):
    """Token ids of a preference pair, and the length of its longer side."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    length: int


def pair_rows(tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair], max_length: int,
              max_prompt_length: int | None = None, counts: Counter[str] | None = None) -> list[PairRow]:
    """Token ids of each pair.

    Only whole answers end with an end-of-text token, unlike in TRL's own preparation: a sampled continuation is
    cut off at its 20 tokens, and a likelihood term would teach the model to stop there. A prompt keeps its last
    `max_prompt_length` tokens, or half of `max_length` (TRL 1 cuts no prompts). `counts` gets the pairs
    `left_out`, those `cut` at the end of an answer, and `prompts` that lose their beginning.
    """
    keep = max_prompt_length if max_prompt_length and max_prompt_length < max_length else max_length // 2
    rows: list[PairRow] = []
    counts = Counter() if counts is None else counts
    for pair in pairs:
        both = tokenizer([pair.prompt + pair.chosen, pair.prompt + pair.rejected])["input_ids"]
        alone = tokenizer(pair.prompt)["input_ids"]
        shared = 0
        while shared < min(map(len, (alone, *both))) and alone[shared] == both[0][shared] == both[1][shared]:
            shared += 1
        prompt = alone[:shared][-keep:]
        if shared > keep:
            counts["prompts"] += 1
        end = tokenizer.eos_token_id if pair.ends else None
        # A chat template writes the end itself, and may put a line break after it.
        answers = [ids[shared:] + ([] if end is None or end in ids[shared:][-2:] else [end]) for ids in both]
        chosen, rejected = (ids[: max_length - len(prompt)] for ids in answers)
        usable = bool(prompt and chosen and rejected)
        counts["cut" if usable else "left_out"] += not usable or [chosen, rejected] != answers
        if usable:
            rows.append({"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected,
                         "length": len(prompt) + max(len(chosen), len(rejected))})
    return rows


class _PairTrainer(LikeLengthBatches, DPOTrainer):  # type: ignore[misc]
    """TRL's trainer on rows of `pair_rows`, with an optional anchor on harmless text."""

    def __init__(self, *, anchor: list[list[int]], anchor_weight: float, **options: Any) -> None:
        self._anchor, self._anchor_weight = anchor, anchor_weight
        self._next_anchor = 0
        super().__init__(**options)

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        """With rows of like length together, for hardly any padding, and then back in their order."""
        score_labels_only(cast("PeftModel", self.model))
        lengths = dataset["length"]
        order = sorted(range(len(lengths)), key=lambda index: lengths[index])
        places = sorted(range(len(order)), key=order.__getitem__)
        collate = self.data_collator
        with task("reading with the reference", len(order), "pairs") as work:

            def counted(rows: list[Any]) -> Any:
                work.advance(len(rows))
                return collate(rows)

            self.data_collator = counted
            try:
                return super()._precompute_ref_logps(dataset.select(order), name, batch_size).select(places)
            finally:
                self.data_collator = collate

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)  # type: ignore[no-untyped-call]
        if not self._anchor:
            return loss
        drift = self._drift(model)
        self._metrics["train"]["anchor_loss"].append(drift.item())
        return loss + self._anchor_weight * drift

    def _drift(self, model: Any) -> torch.Tensor:
        """The divergence on the next texts, a quarter as many as there are pairs a step.

        Each process reads the same ones: exact, and no slower than one process.
        """
        count = max(1, self.args.per_device_train_batch_size * distributed.count() // 4)
        rows = [self._anchor[(self._next_anchor + step) % len(self._anchor)] for step in range(count)]
        self._next_anchor += count
        ids, mask = (part.to(self.args.device) for part in padded_with_mask(rows, self._tokenizer.pad_token_id))
        self._total_train_tokens += int(mask.sum())
        return divergence(self.accelerator.unwrap_model(model), ids, mask, start=REFERENCE_ADAPTER)


def make_trainer(model: PeftModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[PairRow], dpo: DpoSection, *,
                 anchor: list[list[int]], seed: int, work: Path, dtype: torch.dtype | None = None) -> DPOTrainer:
    """TRL's DPO trainer for rows of `pair_rows`; the adapter as it stands becomes the frozen reference.

    Raises:
        DetoxError: there is no row.
    """
    if not rows:
        raise DetoxError("no preference pair is left to train on", place="training.dpo",
                         remedy="raise training.dpo.max_length, or give more prompts")
    losses: list[str] = [dpo.loss, *(["sft"] if dpo.likelihood_weight else [])]
    weights = [1.0, *([dpo.likelihood_weight] if dpo.likelihood_weight else [])]
    arguments = training_arguments(
        DPOConfig, dpo, rows=len(rows), seed=seed, work=work, dtype=dtype, max_length=dpo.max_length, beta=dpo.beta,
        loss_type=losses, loss_weights=weights, precompute_ref_log_probs=distributed.count() == 1,
        precompute_ref_batch_size=2 * dpo.batch_size)
    with adapters_in_float32(model):
        trainer = _PairTrainer(anchor=anchor, anchor_weight=dpo.anchor_weight, model=model, args=arguments,
                               train_dataset=Dataset.from_list(list(rows)), processing_class=tokenizer)
    if distributed.count() > 1:  # TRL computes the reference's log-probabilities with each batch: it cannot hash shards
        score_labels_only(model)
    return trainer


def own_continuations(
    adapter: Path, passages: Sequence[str], *, count: int, sampling: SamplingSection, seed: int
) -> list[str]:
    """`count` texts: openings of harmless passages with the start model's continuations."""
    openings = [" ".join(text.split()[:_OPENING_WORDS[number % len(_OPENING_WORDS)]])
                for number, text in enumerate(passages[:count])]
    if not openings:
        return []
    each = -(-count // len(openings))
    openings = openings[: -(-count // each)]
    short = sampling.model_copy(update={"max_new_tokens": _NEW_TOKENS})
    with task("sampling the anchor", len(openings) * each, "continuations") as work:
        continuations = sample_continuations(load_model(adapter), load_tokenizer(adapter), openings, k=each,
                                             sampling=short, seed=seed, on_progress=work.advance)
    return [opening + text for opening, texts in zip(openings, continuations, strict=True) for text in texts][:count]


def anchor_rows(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int) -> list[list[int]]:
    """The token ids of each text, without an end: a continuation was cut off."""
    encoded: list[list[int]] = tokenizer(list(texts))["input_ids"] if texts else []  # type: ignore[assignment]
    return [ids[:max_length] for ids in encoded if ids]


def padded_with_mask(rows: Sequence[list[int]], padding: int) -> tuple[Tensor, Tensor]:
    """Ids [b, t], padded on the right, and which of them are tokens [b, t] bool."""
    ids = padded(rows, padding)
    return ids, torch.arange(ids.shape[1]) < torch.tensor([[len(row)] for row in rows])


def divergence(model: PeftModel, ids: Tensor, mask: Tensor, *, start: str) -> Tensor:
    """Mean over the tokens of KL(start || now) in nats, now being the active adapter.

    Args:
        model: with the adapter `start` beside the active one.
        ids: [b, t] token ids, padded on the right.
        mask: [b, t] bool, which of them are tokens.
        start: name of the frozen adapter.
    """
    def log_probs() -> Tensor:
        logits: Tensor = model(input_ids=ids, attention_mask=mask.long(), use_cache=False).logits[mask]
        return logits.float().log_softmax(-1)

    training = model.training
    model.eval()
    with torch.no_grad(), use_adapter(model, start):
        target = log_probs()
    model.train(training)
    return torch.nn.functional.kl_div(log_probs(), target, reduction="batchmean", log_target=True)
