"""The step `train-experts`: an expert of clean and an anti-expert of toxic text, for rewriting by their disagreement.

Experts learn to restore text of one class from text with holes (BART: text infilling as in Lewis et al. 2020,
spans of Poisson(3) words, 30 % masked), not to copy it; causal experts are LoRA adapters that learn to continue it.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from llm_detox.data.records import read_jsonl
from llm_detox.errors import DetoxError
from llm_detox.recipe import Recipe
from llm_detox.recipe.training import TrainingSection
from llm_detox.rephrase.seq2seq import is_seq2seq
from llm_detox.runs.artifacts import TrainedFolder
from llm_detox.training import distributed
from llm_detox.training.encoding import TokenRow, report_truncation, tokenize
from llm_detox.training.library_logging import quiet_libraries
from llm_detox.training.lora import load_training_tokenizer
from llm_detox.training.paraphraser import NAN_REMEDY, SETTINGS, rephraser_base, sft_of
from llm_detox.training.run import TrainingResult, summary
from llm_detox.training.sft import Run, fine_tune

MASKED_SHARE = 0.3
MEAN_SPAN = 3.0
EXPERT, ANTI_EXPERT = "expert", "anti_expert"
_FINISHED = "finished"  # in an expert's work folder


@dataclass(frozen=True, kw_only=True)
class ExpertResult(TrainingResult):
    """The figures of one expert's run, and the number of its texts."""

    texts: int


@dataclass(frozen=True)
class ExpertsResult:
    """The figures of both."""

    expert: ExpertResult
    anti_expert: ExpertResult


def train_experts(recipe: Recipe, *, texts: Path, output: Path) -> ExpertsResult:
    """Train an expert on the clean and an anti-expert on the toxic texts, each into a folder of `output`.

    A killed run continues where it stopped.

    Args:
        recipe: its `rephraser_training` section counts, `model`, and of `training` how often a checkpoint is made.
        texts: JSON lines `{"text", "toxic": bool}`.
        output: with `expert/` and `anti_expert/`: models (seq2seq) or adapters (causal), with their `metrics.jsonl`.

    Raises:
        DetoxError: a class has no text, the model cannot be loaded, or a loss is no number.
    """
    section, source = recipe.rephraser_training, rephraser_base(recipe.rephraser_training, recipe.model.source)
    classes = read_classes(texts)
    rng = random.Random(recipe.seed)  # noqa: S311 - holes, not secrets
    with (distributed.shared_step_folder(output, "experts", settings=recipe.settings(*SETTINGS),
                                         inputs={"texts": texts}, resumable=True) as folder, quiet_libraries()):
        training, lost = sft_of(section, recipe.training, source), Counter[str]()
        tokenizer = load_training_tokenizer(source)
        rows = {name: infilling_rows(tokenizer, members, rng, section.max_length) if is_seq2seq(source)
                else tokenize(tokenizer, members, section.max_length, lost) for name, members in classes.items()}
        report_truncation(lost, "rephraser_training.max_length")
        results = {}
        for name, members in classes.items():
            run = Run(name, folder / name, folder.work_file("work") / name, NAN_REMEDY)
            figures = _train_once(source, tokenizer, rows[name], training, run, recipe.seed)
            results[name] = ExpertResult(**asdict(figures), texts=len(members))
        folder.counts.update({name: len(members) for name, members in classes.items()})
        result = ExpertsResult(results[EXPERT], results[ANTI_EXPERT])
        folder.finish(result)
        return result


def read_classes(texts: Path) -> dict[str, list[str]]:
    """The clean texts for the expert, and the toxic ones for the anti-expert.

    Raises:
        DetoxError: a class has no text.
    """
    classes: dict[str, list[str]] = {EXPERT: [], ANTI_EXPERT: []}
    for record in read_jsonl(texts, required=("text", "toxic")):
        classes[ANTI_EXPERT if record["toxic"] else EXPERT].append(str(record["text"]))
    for name, members in classes.items():
        if not members:
            raise DetoxError(f"no {'toxic' if name == ANTI_EXPERT else 'clean'} text for the {name}", place=str(texts),
                             remedy="the experts need records of both classes")
    return classes


def _train_once(source: str, tokenizer: PreTrainedTokenizerBase, rows: Sequence[TokenRow], training: TrainingSection,
                run: Run, seed: int) -> TrainingResult:
    """`fine_tune`, unless an interrupted run of the step had finished this expert."""
    finished = run.work / _FINISHED
    if distributed.from_first(finished.exists):
        return distributed.from_first(lambda: summary(run.output / TrainedFolder.metrics))
    for place in (run.output, run.work):
        place.mkdir(parents=True, exist_ok=True)
    figures = fine_tune(source, tokenizer, rows, training, run, seed=seed)
    if distributed.is_first():
        finished.touch()
    return figures


def infilling_rows(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], rng: random.Random, max_length: int,
                   ) -> list[TokenRow]:
    """For each text itself as the target, and for the encoder the text with a mask for each of some spans of words."""
    rows: list[TokenRow] = []
    for text in texts:
        target = list(tokenizer(text, truncation=True, max_length=max_length)["input_ids"])
        masked = with_holes(text.split(), str(tokenizer.mask_token), rng)
        ids = list(tokenizer(masked, truncation=True, max_length=max_length)["input_ids"])
        rows.append({"input_ids": ids, "labels": target, "length": len(ids) + len(target)})
    return rows


def with_holes(words: Sequence[str], mask: str, rng: random.Random) -> str:
    """Spans of Poisson(3) words, at least one, replaced by a mask until 30 % of the words are gone."""
    left = list(words)
    budget = max(1, round(MASKED_SHARE * len(words)))
    while budget > 0 and left:
        length = min(budget, max(1, _poisson(rng)))
        start = rng.randrange(max(1, len(left) - length + 1))
        if mask not in left[start: start + length]:
            left[start: start + length] = [mask]
            budget -= length
        elif all(mask in left[i: i + length] for i in range(max(1, len(left) - length + 1))):
            break  # no span of this length is left
    return " ".join(left)


def _poisson(rng: random.Random) -> int:
    limit, product, count = math.exp(-MEAN_SPAN), rng.random(), 0
    while product > limit:
        product *= rng.random()
        count += 1
    return count
