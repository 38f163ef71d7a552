"""Direct preference optimisation (Rafailov et al. 2023) of the SFT adapter, with TRL's DPOTrainer.

The reference is a frozen copy of the adapter; its log-probabilities are computed once, before training.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedTokenizerBase
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer

from llm_detox.cluster.train_job import train_on_nodes
from llm_detox.data.records import Record, read_jsonl, write_jsonl
from llm_detox.errors import DetoxError
from llm_detox.generation.models import load_model, load_tokenizer, read_base_source
from llm_detox.progress import say, task
from llm_detox.recipe import Recipe
from llm_detox.recipe.training import DpoSection
from llm_detox.runs.artifacts import TrainedFolder
from llm_detox.runs.folders import MANIFEST, StepFolder
from llm_detox.training import distributed
from llm_detox.training.anchor import anchor_rows, divergence, own_continuations, padded
from llm_detox.training.batches import LikeLengthBatches
from llm_detox.training.encoding import clean_texts, report_truncation
from llm_detox.training.library_logging import quiet_libraries
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
from llm_detox.training.pairs import GIVEN, Pair, given_pairs, prompt_texts, rewrite_pairs, sampled_pairs
from llm_detox.training.run import common_arguments, run_training
from llm_detox.training.sft import tell_translations

_NAN_REMEDY = "lower training.dpo.learning_rate or raise training.dpo.beta"


def train_dpo(
    recipe: Recipe, *, adapter: Path, records: Path | None, prompts: Path | None, clean: Path | None, output: Path
) -> dict[str, Any]:
    """Train the SFT adapter further on preference pairs and write a LoRA adapter folder for the same base.

    A killed run goes on where it was, with the pairs that it had made.

    Args:
        recipe: its `model`, `training`, `scoring.training` and `evaluation.sampling` parts count.
        adapter: the adapter folder that `train_sft` wrote: start and reference of the training.
        records: detoxify's records, for the pairs rewrite against original; None where `rewrite_pairs` is 0.
        prompts: prompts whose sampled continuations make the other pairs; not those of the evaluation. None where
            `max_pairs` is 0.
        clean: harmless passages, JSON lines with `text`: on continuations of their openings the model stays where it
            was (`anchor_weight`).
        output: the adapter folder to write; with `pairs.jsonl`, `metrics.jsonl`.

    Returns:
        figures of the run as `train_sft` gives them, and the number of pairs of each kind.

    Raises:
        DetoxError: no pair could be made, a loss that is no number, `adapter` is no adapter folder.
    """
    given = {"adapter": adapter, "records": records, "prompts": prompts, "clean": clean}
    inputs = {name: path for name, path in given.items() if path}
    if recipe.training.dpo.enabled and distributed.on_other_nodes(recipe):
        return train_on_nodes(recipe, "dpo", inputs, output=output)
    settings = recipe.settings("model", "training", "scoring", "evaluation")
    if not recipe.training.dpo.enabled:
        with distributed.shared_step_folder(output, "adapter", settings=settings, inputs=inputs) as folder:
            return _pass_on(adapter, folder)
    with (distributed.shared_step_folder(output, "adapter", settings=settings, inputs=inputs, resumable=True) as folder,
          quiet_libraries()):
        pairs = [Pair(**record) for record in distributed.from_first(lambda: _kept(folder, "pairs", lambda: [
            pair.as_record() for pair in make_pairs(recipe, adapter=adapter, records=records, prompts=prompts)]))]
        anchor = [record["text"] for record in distributed.from_first(lambda: _kept(folder, "anchor", lambda: [
            {"text": text} for text in _anchor_texts(recipe, adapter, clean)]))]
        folder.counts.update(_counts(recipe, pairs))
        folder.result.update(_train(recipe, adapter, pairs, anchor, folder), pairs=dict(folder.counts))
        return folder.result


def _pass_on(adapter: Path, folder: StepFolder) -> dict[str, Any]:
    """The SFT outcome is the last arm's where a recipe has no preference training."""
    say("no preference training in this recipe (training.dpo.enabled): the SFT outcome is the last arm's")
    if distributed.is_first():
        shutil.copytree(adapter, folder.path, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MANIFEST))
    folder.result["enabled"] = False
    return folder.result


def _counts(recipe: Recipe, pairs: Sequence[Pair]) -> dict[str, int]:
    kinds = ["rewrite", "sampled", *([GIVEN] if recipe.training.dpo.pairs else [])]
    return {kind: sum(pair.source == kind for pair in pairs) for kind in kinds}


def _kept(folder: StepFolder, name: str, make: Callable[[], list[Record]]) -> list[Record]:
    """The records that an interrupted run left in its folder, or new ones."""
    kept, unfinished = folder / f"{name}.jsonl", folder / f"{name}.part"
    if not kept.exists():
        write_jsonl(unfinished, make())
        unfinished.rename(kept)
    return list(read_jsonl(kept))


def make_pairs(recipe: Recipe, *, adapter: Path, records: Path | None, prompts: Path | None) -> list[Pair]:
    """The preference pairs of a run: from the audit trail, from sets made elsewhere, and from samples of the model.

    Raises:
        DetoxError: not one pair could be made, or what they are to be made of was not given.
    """
    dpo = recipe.training.dpo
    pairs = rewrite_pairs(read_jsonl(_given(records, "records", "rewrite_pairs")), dpo.rewrite_pairs) \
        if dpo.rewrite_pairs else []
    pairs += given_pairs(dpo.pairs, load_tokenizer(adapter)) if dpo.pairs else []
    pairs += _from_samples(recipe, adapter, prompt_texts(_given(prompts, "prompts", "max_pairs"))) \
        if dpo.max_pairs else []
    if not pairs:
        raise _no_pairs(dpo, records, prompts)
    names = {"rewrite": "rewrite against original"}
    say("preference pairs: " + ", ".join(
        f"{count} {names.get(kind, kind)}" for kind, count in _counts(recipe, pairs).items()))
    return pairs


def _given(path: Path | None, what: str, setting: str) -> Path:
    if path is None:
        raise DetoxError(f"no {what} to make preference pairs of", place=f"training.dpo.{setting}",
                         remedy=f"give --{what}, or set it to 0")
    return path


def _no_pairs(dpo: DpoSection, records: Path | None, prompts: Path | None) -> DetoxError:
    """What was tried, and what helps there."""
    tried, remedies = [], []
    if dpo.rewrite_pairs:
        tried.append("no rewritten record begins as its original")
        remedies.append("give records that detoxify rewrote")
    if dpo.max_pairs:
        tried.append(f"no continuation was {dpo.margin:g} less toxic than another")
        remedies.append("give more or more provoking prompts, or lower training.dpo.margin")
    return DetoxError("no preference pair could be made: " + ("; ".join(tried) or "no source of pairs is on"),
                      place=str((prompts if dpo.max_pairs else records) or "training.dpo"), remedy="; or ".join(
                          remedies or ["set training.dpo.max_pairs, rewrite_pairs or pairs, or enabled: false"]))


def _from_samples(recipe: Recipe, adapter: Path, prompts: list[str]) -> list[Pair]:
    from llm_detox.generation.sampling import sample_continuations
    from llm_detox.scoring.load import load_scorer

    dpo = recipe.training.dpo
    model = load_model(adapter)
    with task("sampling for pairs", len(prompts) * dpo.samples_per_prompt, "continuations") as work:
        continuations = sample_continuations(
            model, load_tokenizer(adapter), prompts, k=dpo.samples_per_prompt,
            sampling=recipe.evaluation.sampling, seed=recipe.seed, on_progress=work.advance)
    del model
    flat = load_scorer(recipe.scoring.training).score([text for texts in continuations for text in texts])
    scores = [flat[start: start + dpo.samples_per_prompt] for start in range(0, len(flat), dpo.samples_per_prompt)]
    return sampled_pairs(prompts, continuations, scores, dpo)


def _anchor_texts(recipe: Recipe, adapter: Path, clean: Path | None) -> list[str]:
    if clean is None or not recipe.training.dpo.anchor_weight:
        return []
    if is_whole_model(adapter):
        raise DetoxError("only an adapter can be held where it started: a whole model keeps no copy of its start",
                         place="training.dpo.anchor_weight", remedy="set it to 0, or training.sft.method: lora")
    return own_continuations(recipe, adapter, clean_texts(clean))


def _train(
    recipe: Recipe, adapter: Path, pairs: Sequence[Pair], anchor_texts: list[str], folder: StepFolder
) -> dict[str, Any]:
    dpo = recipe.training.dpo
    tokenizer = load_tokenizer(adapter)
    tell_translations(recipe)
    base, whole = read_base_source(adapter), is_whole_model(adapter)
    training = resolve_quantization(recipe.training, str(adapter) if whole else base, dpo, folder, sides=2)
    model = open_adapter(adapter, training, recipe.seed)
    lost = Counter[str]()
    rows = pair_rows(tokenizer, pairs, dpo.max_length, dpo.max_prompt_length, lost)
    folder.result.update(report_truncation(lost, "training.dpo.max_length"))
    anchor = anchor_rows(tokenizer, anchor_texts, dpo.max_length)
    trainer = make_trainer(
        model, tokenizer, rows, dpo, anchor=anchor, seed=recipe.seed, work=folder.work_file("work"))

    def save() -> None:
        if whole:
            save_merged(model, tokenizer, adapter, folder.path)
        else:
            save_adapter(model, tokenizer, base, folder.path)

    return run_training(trainer, "DPO", folder / TrainedFolder.metrics, remedy=_NAN_REMEDY,
                        settings=recipe.training,
                        save=save)


def pair_rows(tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair], max_length: int,
              max_prompt_length: int | None = None, counts: Counter[str] | None = None) -> list[dict[str, Any]]:
    """Token ids of each pair: `prompt_ids`, `chosen_ids`, `rejected_ids`, and the `length` of the longer side.

    An end-of-text token is put behind whole answers alone, unlike TRL's own preparation: a sampled continuation is
    cut off at its 20 tokens, and a likelihood term would teach the model to stop there. A prompt keeps its last
    `max_prompt_length` tokens, or half of `max_length` (TRL 1 cuts no prompts). `counts` gets the pairs
    `left_out`, and those `cut` at the end of an answer.
    """
    keep = max_prompt_length or max_length // 2
    rows, counts = [], Counter() if counts is None else counts
    for pair in pairs:
        both = tokenizer([pair.prompt + pair.chosen, pair.prompt + pair.rejected])["input_ids"]
        alone = tokenizer(pair.prompt)["input_ids"]
        shared = 0
        while shared < min(map(len, (alone, *both))) and alone[shared] == both[0][shared] == both[1][shared]:
            shared += 1
        prompt = alone[:shared][-keep:]
        end = tokenizer.eos_token_id if pair.ends else None
        # A chat template writes the end itself, and may put a line break behind it.
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
        ids, mask = (part.to(self.args.device) for part in padded(rows, self._tokenizer.pad_token_id))
        self._total_train_tokens += int(mask.sum())
        return divergence(self.accelerator.unwrap_model(model), ids, mask, start=REFERENCE_ADAPTER)


def make_trainer(model: PeftModel, tokenizer: PreTrainedTokenizerBase, rows: list[dict[str, Any]], dpo: DpoSection, *,
                 anchor: list[list[int]], seed: int, work: Path) -> DPOTrainer:
    """TRL's DPO trainer for rows of `pair_rows`; the adapter as it stands becomes the frozen reference.

    Raises:
        DetoxError: there is no row.
    """
    if not rows:
        raise DetoxError("no preference pair is left to train on", place="training.dpo",
                         remedy="raise training.dpo.max_length, or give more prompts")
    losses: list[str] = [dpo.loss, *(["sft"] if dpo.likelihood_weight else [])]
    weights = [1.0, *([dpo.likelihood_weight] if dpo.likelihood_weight else [])]
    arguments = DPOConfig(
        **common_arguments(dpo, steps_of=len(rows), seed=seed, work=work),
        max_length=dpo.max_length, beta=dpo.beta,
        loss_type=losses, loss_weights=weights, precompute_ref_log_probs=distributed.count() == 1,
        precompute_ref_batch_size=2 * dpo.batch_size)
    with adapters_in_float32(model):
        trainer = _PairTrainer(anchor=anchor, anchor_weight=dpo.anchor_weight, model=model, args=arguments,
                               train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    if distributed.count() > 1:  # TRL computes the reference's log-probabilities with each batch: it cannot hash shards
        score_labels_only(model)
    return trainer
