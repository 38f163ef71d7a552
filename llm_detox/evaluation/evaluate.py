"""The evaluation of one arm: the toxicity of its continuations, and what the arm does to clean text: its perplexity on
it, and how fluent and how willing its continuations are."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from llm_detox.data.records import hash_fraction, read_generations, read_texts, write_jsonl
from llm_detox.errors import DetoxError, UsageError
from llm_detox.evaluation.compare import attribute_shares
from llm_detox.evaluation.continuations import Clock, ContinuationScores, Prompts, score_continuations
from llm_detox.evaluation.intervals import Bootstrap, ratio_interval
from llm_detox.evaluation.metrics import STRATA, distinct, summarise, word_runs
from llm_detox.evaluation.refusals import RefusalShare, refusal_share
from llm_detox.evaluation.results import (
    ComparableSettings,
    ContinuationFigures,
    ContinuationPerplexity,
    EvaluationReport,
    EvaluationSummary,
    EvaluationValues,
    FluencyPerplexity,
    JudgedAnswers,
    Perplexity,
    ScorerIdentity,
    write_evaluation,
)
from llm_detox.evaluation.verdicts import judge_generations
from llm_detox.generation.generators import Generator, ReadingGenerator, StoredContinuations, Texts, open_generator
from llm_detox.generation.likelihood import LikelihoodReader
from llm_detox.generation.trees import Loss
from llm_detox.judge.judge import judge_fingerprint
from llm_detox.progress import human_seconds, say, task
from llm_detox.recipe import Recipe
from llm_detox.recipe.evaluation import EvaluationSection
from llm_detox.runs.artifacts import DataFolder, EvaluationFolder
from llm_detox.runs.folders import MANIFEST, Shard, StepFolder, sha256_of, step_folder
from llm_detox.scoring.base import ToxicityScorer
from llm_detox.scoring.load import check_kept_apart, load_scorer

Continued = tuple[str, Texts]
"""A prompt, and its continuations; None for one that could not be had."""
_CLEAN_PROMPT_WORDS = 10


def evaluate(recipe: Recipe, *, model: str, arm: str, prompts: Path, clean: Path | None, output: Path,
             generations: Sequence[Path] = (), shard: Shard | None = None) -> EvaluationSummary:
    """Measure one arm (RealToxicityPrompts protocol) and write its evaluation folder.

    Args:
        model: source of the arm's model: a folder, an adapter that a step wrote, a hub id, `s3://`, `package://`;
            or the address of a served one (see `llm_detox.generation.generators`), which has no perplexity.
        arm: its name in comparisons, such as "base".
        prompts: RealToxicityPrompts records or `{"prompt": "..."}`, JSON lines.
        clean: `{"id", "text"}` lines of harmless text for perplexity; None leaves perplexity out.
        output: gets `report.json`, `generations.jsonl` and `values.json` (numbers per prompt, for pairing).
        generations: files of continuations to score instead of sampling: the shards' `generations.jsonl`, or
            others in that format.
        shard: (number from 0, of how many): only this part of the prompts. The shards' generations together give
            what one run gives.

    Raises:
        DetoxError: bad prompts or model, or a scorer or server that is dead. Work done so far is kept, and the
            next run continues where this one stopped.
    """
    whole = shard is None
    judge = judge_fingerprint(recipe.judge) if recipe.evaluation.judged_prompts and whole else None
    settings = {**recipe.settings("scoring", "evaluation"), **({"judge": judge} if judge else {}),
                "arm": arm, "model": model, "shard": shard}
    with step_folder(output, "evaluation", settings=settings, inputs=_inputs(model, prompts, clean, generations),
                     resumable=True) as folder:
        clock = Clock()
        asked = Prompts(prompts, shard)
        with clock.measure("load"):
            check_kept_apart(recipe.scoring)
            generator = open_generator(model, recipe.evaluation.engine) if clean or not generations else None
            scorer = load_scorer(recipe.scoring.judging)
        source: Generator | None = StoredContinuations(generations, model) if generations else generator
        if source is None:
            raise UsageError("nothing to evaluate", remedy="name a model, or files of generations")
        scores = score_continuations(recipe.evaluation, recipe.seed, folder, asked, source, scorer, clock)
        with clock.measure("intervals"):
            figures = _continuation_figures(recipe.evaluation, recipe.seed, scores, recipe.scoring.judging.kind)
        verdicts = _judge(recipe, folder, clock) if judge else None
        fluency = measure_fluency(
            recipe.evaluation, recipe.seed, recipe.model.source, generator=generator, clean=clean,
            folder=folder.path, clock=clock) if clean and generator else None
        report = EvaluationReport(
            **vars(figures), arm=arm, model=model, scorer=_identity(scorer, recipe.scoring.judging.source),
            seconds=clock.seconds, judge=verdicts, **vars(fluency[0]) if fluency else {},
            comparable=_comparable(recipe.evaluation, recipe.seed, scorer, prompts, shard, judge))
        return _finish(folder, report, _values(scores, fluency[1] if fluency else None))


def evaluate_arm(recipe: Recipe, *, arm: str, model: str | None, data: Path, output: Path,
                 samples: Sequence[Path] = ()) -> EvaluationSummary:
    """`evaluate` as a step of the pipeline, on the prompts and clean passages that the data step wrote.

    Args:
        model: the folder of the arm's model; None is the recipe's own.
        data: the data step's folder.
        samples: what `evaluate` wrote for the shards; without them the continuations are sampled here.

    Raises:
        DetoxError: see `evaluate`.
    """
    texts = DataFolder(data)
    return evaluate(recipe, model=model or recipe.model.source, arm=arm, prompts=texts.prompts, clean=texts.clean,
                    output=output, generations=[EvaluationFolder(part).generations for part in samples])


def _finish(folder: StepFolder, report: EvaluationReport, values: EvaluationValues) -> EvaluationSummary:
    write_evaluation(folder.path, report, values)
    summary = EvaluationSummary.of(report)
    folder.finish(summary)
    folder.counts = {"prompts": report.prompts, "continuations": report.continuations, "unscored": report.unscored}
    say(f"{report.arm}: " + ", ".join(f"{name} {human_seconds(took)}" for name, took in report.seconds.items()))
    return summary


def _inputs(model: str, prompts: Path, clean: Path | None, generations: Sequence[Path]) -> dict[str, Path]:
    inputs = {"prompts": prompts, **{f"generations {number}": path for number, path in enumerate(generations)}}
    if clean:
        inputs["clean"] = clean
    if (Path(model) / MANIFEST).exists():
        inputs["model"] = Path(model)
    return inputs


def _judge(recipe: Recipe, folder: StepFolder, clock: Clock) -> JudgedAnswers:
    with clock.measure("judge"):
        return judge_generations(recipe.judge, recipe.seed, folder / EvaluationFolder.generations, folder,
                                 count=recipe.evaluation.judged_prompts, confidence=recipe.evaluation.confidence)


def _comparable(settings: EvaluationSection, seed: int, scorer: ToxicityScorer, prompts: Path, shard: Shard | None,
                judge: str | None) -> ComparableSettings:
    return ComparableSettings(
        scorer=scorer.fingerprint, attribute=scorer.attribute, threshold=settings.toxic_threshold,
        continuations=settings.continuations, seed=seed, prompts=sha256_of(prompts)[:16],
        sampling=settings.sampling.model_dump(exclude={"batch_tokens"}), shard=list(shard) if shard else None,
        judge=judge)


def _identity(scorer: ToxicityScorer, source: str | None) -> ScorerIdentity:
    return ScorerIdentity(
        name=scorer.name, version=scorer.version, device=scorer.device, fingerprint=scorer.fingerprint,
        attribute=scorer.attribute, attributes=list(scorer.attributes), source=source)


def _values(scores: ContinuationScores, losses: FluencyLosses | None) -> EvaluationValues:
    return EvaluationValues(ids=scores.ids, strata=[list(strata) for strata in scores.strata], over=scores.over,
                            scores=scores.scores, word_runs=scores.runs, **vars(losses) if losses else {})


def _continuation_figures(settings: EvaluationSection, seed: int, scores: ContinuationScores,
                          scorer: str) -> ContinuationFigures:
    """The figures of all prompts and of each stratum.

    Raises:
        DetoxError: there is no score at all.
    """
    bootstrap, strata = Bootstrap.of(settings, seed), {}
    for stratum in STRATA:
        members = [place for place, member in enumerate(scores.strata) if stratum in member]
        if members:
            strata[stratum] = summarise([scores.scores[place] for place in members],
                                        [scores.refused[place] for place in members], bootstrap)
    whole = strata["all"]
    if whole.unscored_prompts == whole.prompts:
        raise DetoxError("not one continuation could be scored", place=scorer,
                         remedy=f"reasons: {scores.reasons or 'unknown'}")
    return ContinuationFigures(
        **vars(whole), unscored_share=whole.unscored / whole.continuations, unscored_reasons=scores.reasons,
        confidence=settings.confidence, threshold=settings.toxic_threshold, strata=strata,
        threshold_rule=f"a continuation is toxic where its score is at or over {settings.toxic_threshold:g}",
        **vars(distinct(scores.runs, bootstrap)), histogram=scores.histogram,
        attributes=attribute_shares(scores.over, settings.confidence))


@dataclass(frozen=True)
class FluencyFigures:
    """The fields of the same names in `llm_detox.evaluation.results.EvaluationReport`."""

    perplexity_interval: Perplexity | None
    perplexity: float | None
    clean_refusals: RefusalShare
    continuation_perplexity: ContinuationPerplexity
    prompted_perplexity: FluencyPerplexity | None


@dataclass(frozen=True)
class FluencyLosses:
    """Loss and tokens of each prompt's or passage's texts, as `llm_detox.evaluation.results.EvaluationValues` has them.
    """

    clean: list[Loss] | None
    clean_continuations: list[Loss]
    prompted: list[Loss]


def measure_fluency(settings: EvaluationSection, seed: int, base: str, *, generator: Generator, clean: Path,
                    folder: Path, clock: Clock) -> tuple[FluencyFigures, FluencyLosses]:
    """The arm's perplexity on clean text, and an independent model's on the arm's continuations.

    Args:
        settings, seed: of the evaluation.
        base: source of the base model, which reads where there is no fluency model.
        generator: of the arm; a served one gives texts and no likelihoods, so no perplexity of its own.
        clean: JSON lines with `text`.
        folder: of the evaluation, with its `generations.jsonl`; gets `clean_generations.jsonl`.
        clock: gets the time of each part.
    """
    files, bootstrap = EvaluationFolder(folder), Bootstrap.of(settings, seed)
    texts = read_texts(clean)
    losses = None
    if isinstance(generator, ReadingGenerator):
        with clock.measure("clean text"), task("reading clean text", len(texts), "texts") as work:
            losses = generator.losses(texts, on_progress=work.advance)
    own = perplexity(losses, bootstrap) if losses is not None else None
    with clock.measure("clean continuations"):
        continued = _clean_continuations(settings, seed, generator, texts)
    write_jsonl(files.clean_generations, ({"prompt": start, "text": text} for start, some in continued
                                          for text in some))
    prompted = first_continuations(files.generations, settings.clean_prompts)
    with clock.measure("fluency model"):
        reader, note = _fluency_model(settings.fluency_model, base)
        with task("reading continuations", sum(len(texts) for _, texts in continued + prompted), "texts") as work:
            read, read_prompted = (prompt_losses(reader, some, work.advance) for some in (continued, prompted))
    figures = FluencyFigures(
        own, own.value if own else None, refusal_share([some for _, some in continued], settings.confidence),
        ContinuationPerplexity(**vars(perplexity(read, bootstrap)), model=reader.name, note=note,
                               **vars(distinct([word_runs(some) for _, some in continued], bootstrap))),
        FluencyPerplexity(**vars(perplexity(read_prompted, bootstrap)), model=reader.name, note=note)
        if any(count for _, count in read_prompted) else None)
    return figures, FluencyLosses(losses, read, read_prompted)


def first_continuations(generations: Path, count: int) -> list[Continued]:
    """(prompt, its first continuation) of the prompts with the lowest hash of their id, the same ones for every arm."""
    chosen = heapq.nsmallest(count, read_generations(generations),
                             key=lambda record: hash_fraction(record["id"], "fluency"))
    return [(record["prompt"]["text"], [record["generations"][0]["text"]]) for record in chosen]


def prompt_losses(reader: LikelihoodReader, continued: Sequence[Continued],
                  on_progress: Callable[[int], None] | None = None) -> list[Loss]:
    """Loss and tokens of each prompt's continuations together: they hang together, and are resampled together."""
    losses = iter(reader.losses([text or "" for _, texts in continued for text in texts],
                                contexts=[prompt for prompt, texts in continued for _ in texts],
                                on_progress=on_progress))
    rows = []
    for _, texts in continued:
        sums, counts = zip(*islice(losses, len(texts)), strict=True)
        rows.append((sum(sums), sum(counts)))
    return rows


def _clean_continuations(settings: EvaluationSection, seed: int, generator: Generator,
                         texts: Sequence[str]) -> list[Continued]:
    """(first words of a passage, continuations of them), in the order of the passages."""
    starts = [" ".join(text.split()[:_CLEAN_PROMPT_WORDS]) for text in texts[:settings.clean_prompts]]
    starts = [start for start in starts if start]
    continuations = dict(generator.continuations(
        starts, k=settings.clean_continuations, sampling=settings.sampling, seed=seed,
        keys=[f"clean {number}" for number in range(len(starts))]))
    return [(start, continuations[number]) for number, start in enumerate(starts)]


def _fluency_model(source: str | None, base: str) -> tuple[LikelihoodReader, str]:
    """The fluency model, or the base where it is not named or not installed; and a note on which it is."""
    if source is None:
        return LikelihoodReader.load(base), "read by the base model: the recipe names no fluency model"
    try:
        return LikelihoodReader.load(source), "read by an independent model"
    except DetoxError as error:
        say(f"the fluency model is not available here, the base reads instead: {error.message}")
        return LikelihoodReader.load(base), f"read by the base model: {source}: {error.message}"


def perplexity(losses: Sequence[Loss], bootstrap: Bootstrap) -> Perplexity:
    """The perplexity of texts with its interval, rows resampled.

    Raises:
        DetoxError: there is no token to measure.
    """
    usable = [(loss, count) for loss, count in losses if count]
    if not usable:
        raise DetoxError("there is no clean text to measure the perplexity of", remedy="give passages of some words")
    sums, counts = (np.array(column, dtype=np.float64) for column in zip(*usable, strict=True))
    mean = ratio_interval(sums, counts, bootstrap)
    return Perplexity(math.exp(mean.value), math.exp(mean.low), math.exp(mean.high), tokens=int(counts.sum()))
