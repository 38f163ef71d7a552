"""The evaluation of one arm: the toxicity of its continuations, what it does to clean text, and its side effects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from llm_detox.errors import DetoxError, UsageError
from llm_detox.evaluation.compare import attribute_shares
from llm_detox.evaluation.continuations import Clock, ContinuationScores, Prompts, score_continuations
from llm_detox.evaluation.fluency import FluencyLosses, measure_fluency
from llm_detox.evaluation.intervals import Bootstrap
from llm_detox.evaluation.metrics import STRATA, PromptScore, distinct, summarise
from llm_detox.evaluation.opinions import Opinion, ScorerIdentity, other_opinions
from llm_detox.evaluation.results import (
    ComparableSettings,
    ContinuationFigures,
    EvaluationReport,
    EvaluationSummary,
    EvaluationValues,
    JudgedAnswers,
    SideEffects,
    SideEffectValues,
    write_evaluation,
)
from llm_detox.evaluation.side_effects import measure_side_effects
from llm_detox.evaluation.verdicts import judge_generations
from llm_detox.generation.generators import Generator, ReadingGenerator, StoredContinuations, open_generator
from llm_detox.judge.judge import judge_fingerprint
from llm_detox.progress import human_seconds, say
from llm_detox.recipe import Recipe
from llm_detox.recipe.evaluation import EvaluationSection, SideEffectsSection
from llm_detox.runs.artifacts import DataFolder, EvaluationFolder
from llm_detox.runs.folders import MANIFEST, Shard, StepFolder, sha256_of, step_folder
from llm_detox.scoring.base import ToxicityScorer
from llm_detox.scoring.load import check_kept_apart, load_scorer


def evaluate(recipe: Recipe, *, model: str, arm: str, prompts: Path, clean: Path | None, output: Path,
             held_out: Path | None = None, generations: Sequence[Path] = (),
             shard: Shard | None = None) -> EvaluationSummary:
    """Measure one arm (RealToxicityPrompts protocol) and write its evaluation folder.

    Args:
        model: source of the arm's model: a folder, an adapter that a step wrote, a hub id, `s3://`, `package://`;
            or the address of a served one (see `llm_detox.generation.generators`), which has no perplexity.
        arm: its name in comparisons, such as "base".
        prompts: RealToxicityPrompts records or `{"prompt": "..."}`, JSON lines.
        clean: `{"id", "text"}` lines of harmless text for perplexity; None leaves perplexity out.
        held_out: harmless texts of the training texts' kind, JSON lines with `text`; read where `clean` is.
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
    inputs = _inputs(model, generations, {"prompts": prompts, "clean": clean, "held_out": held_out})
    with step_folder(output, "evaluation", settings=settings, inputs=inputs, resumable=True) as folder:
        clock = Clock()
        asked = Prompts(prompts, shard)
        with clock.measure("load"):
            check_kept_apart(recipe.scoring)
            generator = open_generator(model, recipe.evaluation.engine) if clean or not generations else None
            scorer = load_scorer(recipe.scoring.judging)
        source: Generator | None = StoredContinuations(generations, model) if generations else generator
        if source is None:
            raise UsageError("nothing to evaluate", remedy="name a model, or files of generations")
        folder.expect(EvaluationFolder.generations, len(asked))
        scores = score_continuations(recipe.evaluation, recipe.seed, folder, asked, source, scorer, clock)
        with clock.measure("intervals"):
            figures = _continuation_figures(recipe.evaluation, recipe.seed, scores, recipe.scoring.judging.kind)
        verdicts = _judge(recipe, folder, clock) if judge else None
        others = _others(recipe, folder, clock) if whole and recipe.scoring.others else None
        fluency = measure_fluency(
            recipe.evaluation, recipe.seed, recipe.model.source, generator=generator, clean=clean,
            held_out=held_out, folder=folder.path, clock=clock) if clean and generator else None
        side_effects = _side_effects(recipe, generator, clock) if fluency else None
        report = EvaluationReport(
            **vars(figures), arm=arm, model=model,
            scorer=ScorerIdentity.of(scorer, recipe.scoring.judging, recipe.scoring), seconds=clock.seconds,
            judge=verdicts, **vars(fluency[0]) if fluency else {},
            comparable=_comparable(recipe.evaluation, recipe.seed, scorer, prompts, shard, judge),
            side_effects=side_effects[0] if side_effects else None, others=others[0] if others else None)
        return _finish(folder, report, _values(
            scores, fluency[1] if fluency else None, side_effects[1] if side_effects else None,
            others[1] if others else None))


def evaluate_arm(recipe: Recipe, *, arm: str, model: str | None, data: Path, output: Path,
                 samples: Sequence[Path] = ()) -> EvaluationSummary:
    """`evaluate` as a step of the pipeline, on what the data step wrote: prompts, clean passages, held-out texts.

    Args:
        model: the folder of the arm's model; None is the recipe's own.
        data: the data step's folder.
        samples: what `evaluate` wrote for the shards; without them the continuations are sampled here.

    Raises:
        DetoxError: see `evaluate`.
    """
    texts = DataFolder(data)
    return evaluate(recipe, model=model or recipe.model.source, arm=arm, prompts=texts.prompts, clean=texts.clean,
                    held_out=texts.held_out if recipe.data.texts.held_out_count else None, output=output,
                    generations=[EvaluationFolder(part).generations for part in samples])


def _finish(folder: StepFolder, report: EvaluationReport, values: EvaluationValues) -> EvaluationSummary:
    write_evaluation(folder.path, report, values)
    summary = EvaluationSummary.of(report)
    folder.finish(summary)
    folder.counts = {"prompts": report.prompts, "continuations": report.continuations, "unscored": report.unscored}
    say(f"{report.arm}: " + ", ".join(f"{name} {human_seconds(took)}" for name, took in report.seconds.items()))
    return summary


def _inputs(model: str, generations: Sequence[Path], texts: Mapping[str, Path | None]) -> dict[str, Path]:
    inputs = {name: path for name, path in texts.items() if path}
    inputs |= {f"generations {number}": path for number, path in enumerate(generations)}
    if (Path(model) / MANIFEST).exists():
        inputs["model"] = Path(model)
    return inputs


def _judge(recipe: Recipe, folder: StepFolder, clock: Clock) -> JudgedAnswers:
    with clock.measure("judge"):
        return judge_generations(recipe.judge, recipe.seed, folder / EvaluationFolder.generations, folder,
                                 count=recipe.evaluation.judged_prompts, confidence=recipe.evaluation.confidence)


def _others(recipe: Recipe, folder: StepFolder,
            clock: Clock) -> tuple[dict[str, Opinion], dict[str, list[PromptScore]]]:
    with clock.measure("other scorers"):
        return other_opinions(recipe.scoring, folder / EvaluationFolder.generations,
                              recipe.evaluation.toxic_threshold, Bootstrap.of(recipe.evaluation, recipe.seed))


def _side_effects(recipe: Recipe, generator: Generator | None,
                  clock: Clock) -> tuple[SideEffects, SideEffectValues] | None:
    """None where the recipe names none, or the model is served and cannot be read."""
    settings = recipe.evaluation.side_effects
    if not isinstance(generator, ReadingGenerator) or settings == SideEffectsSection():
        return None
    with clock.measure("side effects"):
        return measure_side_effects(settings, generator, Bootstrap.of(recipe.evaluation, recipe.seed))


def _comparable(settings: EvaluationSection, seed: int, scorer: ToxicityScorer, prompts: Path, shard: Shard | None,
                judge: str | None) -> ComparableSettings:
    return ComparableSettings(
        scorer=scorer.fingerprint, attribute=scorer.attribute, threshold=settings.toxic_threshold,
        continuations=settings.continuations, seed=seed, prompts=sha256_of(prompts)[:16],
        sampling=settings.sampling.model_dump(exclude={"batch_tokens"}), shard=list(shard) if shard else None,
        judge=judge)


def _values(scores: ContinuationScores, losses: FluencyLosses | None, side_effects: SideEffectValues | None,
            others: dict[str, list[PromptScore]] | None) -> EvaluationValues:
    return EvaluationValues(ids=scores.ids, strata=[list(strata) for strata in scores.strata], over=scores.over,
                            scores=scores.scores, word_runs=scores.runs, **vars(losses) if losses else {},
                            side_effects=side_effects, others=others)


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
