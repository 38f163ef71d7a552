"""The steps `train-paraphraser` and `train-experts`: models that rewriting needs, trained by the same loop as SFT.

A paraphraser learns rewrites from pairs of a rude and a polite text: a causal base as SFT learns completions; a seq2seq
base, whole, reads the one and writes the other.

An expert of clean and an anti-expert of toxic text rewrite by their disagreement. They learn to restore text of one
class from text with holes (BART: text infilling as in Lewis et al. 2020, spans of Poisson(3) words, 30 % masked), not
to copy it; causal experts are LoRA adapters that learn to continue it.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from llm_detox.data.labels import Labels
from llm_detox.data.records import flag_of, hash_fraction, read_jsonl, same_text_key, text_of
from llm_detox.errors import DetoxError
from llm_detox.progress import say
from llm_detox.recipe import Recipe
from llm_detox.recipe.rephrase import RephraserTrainingSection
from llm_detox.recipe.scorers import ScorerSection
from llm_detox.recipe.training import SftSection, TrainingSection
from llm_detox.rephrase.paraphrase import asked
from llm_detox.rephrase.paraphrase_pairs import TextPair, read_pairs
from llm_detox.rephrase.seq2seq import is_seq2seq
from llm_detox.rephrase.words import as_printed
from llm_detox.runs.artifacts import TrainedFolder
from llm_detox.scoring.load import load_scorer
from llm_detox.scoring.similarity import SentenceSimilarity
from llm_detox.training import distributed
from llm_detox.training.encoding import TokenRow, encode, readable_length, report_truncation, tokenize
from llm_detox.training.lora import load_training_tokenizer
from llm_detox.training.progress_callback import quiet_libraries
from llm_detox.training.run import TrainingResult, summary
from llm_detox.training.sft import Run, fine_tune

_NAN_REMEDY, _MAX_LENGTH = "lower rephraser_training.learning_rate", "rephraser_training.max_length"
# The sections of a recipe that decide what a rewriter becomes.
_SETTINGS = ("model", "rephraser_training", "scoring", "detoxify")
_WARMUP_RATIO = 0.05
MASKED_SHARE = 0.3
MEAN_SPAN = 3.0
EXPERT, ANTI_EXPERT = "expert", "anti_expert"
_FINISHED = "finished"  # in an expert's work folder


@dataclass(frozen=True, kw_only=True)
class ParaphraserResult(TrainingResult):
    """The figures of a run, and the number of pairs."""

    pairs: int


def train_paraphraser(recipe: Recipe, *, pairs: Path, output: Path) -> ParaphraserResult:
    """Train a model to say politely what a text says rudely; a killed run continues where it stopped.

    Args:
        recipe: its `rephraser_training` section counts, `model`, `scoring.training`, and of `training` how often a
            checkpoint is made; also `detoxify.similarity_model`.
        pairs: tab separated without quoting, a header, the rude text first and its rewrites after it (ParaDetox),
            or JSON lines `{"toxic", "neutral"}`.
        output: the model (seq2seq) or adapter (causal) to write, with its `metrics.jsonl`.

    Raises:
        DetoxError: there are no pairs, none is within the bounds, the model cannot be loaded, a loss is no number.
    """
    section, source = recipe.rephraser_training, _base_of(recipe.rephraser_training, recipe.model.source)
    chosen = select_pairs(read_pairs(pairs), section, scorer=recipe.scoring.training,
                          encoder=recipe.detoxify.similarity_model, place=str(pairs))
    with (distributed.shared_step_folder(output, "paraphraser", settings=recipe.settings(*_SETTINGS),
                                         inputs={"pairs": pairs}, resumable=True) as folder, quiet_libraries()):
        tokenizer, lost = load_training_tokenizer(source), Counter[str]()
        longest = readable_length(section.max_length, source, _MAX_LENGTH)
        tidied = [(rude, as_printed(polite) if section.tidy else polite) for rude, polite in chosen]
        make = seq2seq_rows if is_seq2seq(source) else completion_rows
        rows = make(tokenizer, tidied, longest, lost)
        report_truncation(lost, _MAX_LENGTH)
        figures = fine_tune(source, tokenizer, rows, _sft_of(section, recipe.training, source, longest),
                            Run("paraphraser", folder.path, folder.work_file("work"), _NAN_REMEDY), seed=recipe.seed)
        folder.counts["pairs"] = len(chosen)
        result = ParaphraserResult(**asdict(figures), pairs=len(chosen))
        folder.finish(result)
        return result


def completion_rows(tokenizer: PreTrainedTokenizerBase, pairs: Sequence[TextPair], max_length: int,
                    counts: Counter[str]) -> list[TokenRow]:
    """The polite text as the completion of a prompt with the rude one; `counts` as in `encode`."""
    return encode(tokenizer, [{"prompt": asked(rude), "completion": f" {polite}"} for rude, polite in pairs],
                  max_length, counts=counts)


def seq2seq_rows(tokenizer: PreTrainedTokenizerBase, pairs: Sequence[TextPair], max_length: int,
                 counts: Counter[str]) -> list[TokenRow]:
    """The rude text for the encoder and the polite one as the target, each cut to `max_length`; `counts` gets `cut`."""
    rows: list[TokenRow] = []
    for pair in pairs:
        whole = [list(tokenizer(text)["input_ids"]) for text in pair]
        source, target = (list(tokenizer(text, truncation=True, max_length=max_length)["input_ids"]) for text in pair)
        counts["cut"] += whole != [source, target]
        rows.append({"input_ids": source, "labels": target, "length": len(source) + len(target)})
    return rows


def select_pairs(pairs: Sequence[TextPair], section: RephraserTrainingSection, *, scorer: ScorerSection,
                 encoder: str | None, place: str) -> list[TextPair]:
    """The pairs within the section's `pair_...` bounds, at most `max_pairs`, chosen by hash.

    What people wrote as a rewrite is now and then still rude, or another sentence: it would be learnt, too.

    Args:
        pairs: (rude, polite).
        section: the bounds.
        scorer: of `pair_toxicity`.
        encoder: of `pair_similarity`, `detoxify.similarity_model`.
        place: of the pairs, for errors.

    Raises:
        DetoxError: no pair is within the bounds, or one cannot be measured.
    """
    left = list(pairs)
    if section.pair_toxicity < 1:
        scores = load_scorer(scorer).score([polite for _, polite in left])
        left = [pair for pair, score in zip(left, scores, strict=True)
                if score is not None and score < section.pair_toxicity]
    if section.pair_similarity > 0 and left:
        if encoder is None:
            raise DetoxError("no sentence encoder measures the similarity of the pairs",
                             place="rephraser_training.pair_similarity",
                             remedy="set it to 0, or name a detoxify.similarity_model")
        cosines = SentenceSimilarity(encoder).cosine(*map(list, zip(*left, strict=True)))
        left = [pair for pair, cosine in zip(left, cosines, strict=True) if cosine >= section.pair_similarity]
    if not left:
        raise DetoxError(f"none of {len(pairs)} pairs is within the bounds", place=place, remedy="raise "
                         "rephraser_training.pair_toxicity, or lower rephraser_training.pair_similarity")
    chosen = sorted(left, key=lambda pair: hash_fraction("\t".join(pair), "pairs"))[:section.max_pairs]
    say(f"{len(pairs)} pairs, {len(left)} within the bounds, {len(chosen)} to learn from")
    return chosen


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
    section, source = recipe.rephraser_training, _base_of(recipe.rephraser_training, recipe.model.source)
    classes = read_classes(texts)
    rng = random.Random(recipe.seed)  # noqa: S311 - holes, not secrets
    with (distributed.shared_step_folder(output, "experts", settings=recipe.settings(*_SETTINGS),
                                         inputs={"texts": texts}, resumable=True) as folder, quiet_libraries()):
        longest = readable_length(section.max_length, source, _MAX_LENGTH)
        training, lost = _sft_of(section, recipe.training, source, longest), Counter[str]()
        tokenizer = load_training_tokenizer(source)
        rows = {name: infilling_rows(tokenizer, members, rng, longest) if is_seq2seq(source)
                else tokenize(tokenizer, members, longest, lost) for name, members in classes.items()}
        report_truncation(lost, _MAX_LENGTH)
        results = {}
        for name, members in classes.items():
            run = Run(name, folder / name, folder.work_file("work") / name, _NAN_REMEDY)
            figures = _train_once(source, tokenizer, rows[name], training, run, recipe.seed)
            results[name] = ExpertResult(**asdict(figures), texts=len(members))
        folder.counts.update({name: len(members) for name, members in classes.items()})
        result = ExpertsResult(results[EXPERT], results[ANTI_EXPERT])
        folder.finish(result)
        return result


def read_classes(texts: Path) -> dict[str, list[str]]:
    """The clean texts for the expert, and the toxic ones for the anti-expert.

    Raises:
        DetoxError: a class has no text, a record no text or label, or too many texts have both labels.
    """
    classes: dict[str, list[str]] = {EXPERT: [], ANTI_EXPERT: []}
    labels = Labels()
    for number, record in enumerate(read_jsonl(texts, required=("text", "toxic")), start=1):
        place = f"{texts}, record {number}"
        text, toxic = text_of(record, "text", place), flag_of(record, "toxic", place)
        if toxic is None:
            raise DetoxError("the text has no label", place=place, remedy="set `toxic` to true or false")
        labels.add(same_text_key(text), toxic)
        classes[ANTI_EXPERT if toxic else EXPERT].append(text)
    labels.check(str(texts))
    classes = {name: [text for text in members if same_text_key(text) not in labels.contradictory]
               for name, members in classes.items()}
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


def _base_of(section: RephraserTrainingSection, model: str) -> str:
    """The source that a rephraser is trained from: the section's own, else the recipe's model."""
    return section.base or model


def _sft_of(section: RephraserTrainingSection, training: TrainingSection, source: str,
            max_length: int) -> TrainingSection:
    """A rephraser's training as the SFT that it is: LoRA on an unquantised causal base, a seq2seq base whole.

    Args:
        section: of the rephraser.
        training: says how often a checkpoint is made, and whether event files are written.
        source: of the base.
        max_length: of a text, in tokens.
    """
    stage = SftSection(method="full" if is_seq2seq(source) else "lora", learning_rate=section.learning_rate,
                       epochs=section.epochs, batch_size=section.batch_size, max_length=max_length,
                       warmup_ratio=_WARMUP_RATIO)
    return training.model_copy(update={
        "quantization": "none", "precision": section.precision, "lora": section.lora, "sft": stage})
