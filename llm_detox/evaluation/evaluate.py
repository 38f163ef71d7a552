"""The evaluation of one arm: sampled continuations, their toxicity, and what the arm does to clean text."""

from __future__ import annotations

import heapq
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from llm_detox.data.records import hash_fraction, read_jsonl, write_jsonl
from llm_detox.errors import DetoxError, UsageError
from llm_detox.evaluation.continuations import GENERATIONS, Clock, Sampled, draw_and_score
from llm_detox.evaluation.intervals import ratio_interval, share_interval
from llm_detox.evaluation.judge_metrics import judge_generations, without_nan
from llm_detox.evaluation.metrics import METRICS, STRATA, WordRuns, summarise
from llm_detox.evaluation.prompts import Prompts
from llm_detox.evaluation.refusal_patterns import refusal_rate
from llm_detox.generation.fluency import FluencyModel, Loss
from llm_detox.generation.generators import Generator, ReadingGenerator, open_generator
from llm_detox.generation.stored_continuations import StoredContinuations
from llm_detox.judge.judge import judge_fingerprint
from llm_detox.progress import human_seconds, say, task
from llm_detox.recipe import Recipe
from llm_detox.runs.folders import MANIFEST, StepFolder, sha256_of, step_folder
from llm_detox.runs.shards import Shard
from llm_detox.scoring.base import ToxicityScorer
from llm_detox.scoring.independence import check_kept_apart
from llm_detox.scoring.load import load_scorer

REPORT, VALUES, CLEAN_GENERATIONS = "report.json", "values.json", "clean_generations.jsonl"
_CLEAN_PROMPT_WORDS = 10


def evaluate(recipe: Recipe, *, model: str, arm: str, prompts: Path, clean: Path | None, output: Path,
             generations: Sequence[Path] = (), shard: Shard | None = None) -> dict[str, Any]:
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

    Returns:
        The manifest's result: the metrics over all prompts, perplexities, unscored.

    Raises:
        DetoxError: bad prompts or model, or a scorer or server that is dead. Work done so far is kept, and the
            next run goes on behind it.
    """
    judged = bool(recipe.evaluation.judged_prompts) and shard is None  # once, when the shards are put together
    asked = {"judge": judge_fingerprint(recipe)} if judged else {}
    settings = {**recipe.settings("scoring", "evaluation"), **asked, "arm": arm, "model": model, "shard": shard}
    with step_folder(output, "evaluation", settings=settings, inputs=_inputs(model, prompts, clean, generations),
                     resumable=True) as folder:
        asked_prompts = Prompts(prompts, shard)
        clock = Clock()
        with clock.measure("load"):
            check_kept_apart(recipe.scoring)
            continuer = open_generator(model, recipe.evaluation.engine) if clean or not generations else None
            scorer = load_scorer(recipe.scoring.judging)
        source: Generator | None = StoredContinuations(generations, model) if generations else continuer
        if source is None:
            raise UsageError("nothing to evaluate", remedy="name a model, or files of generations")
        sampled = draw_and_score(recipe, folder, asked_prompts, source, scorer, clock)
        report = _toxicity_report(recipe, sampled, clock)
        report |= {"arm": arm, "model": model, "scorer": _describe(recipe, scorer), "seconds": clock.seconds,
                   "comparable": comparable_settings(recipe, scorer, prompts) | ({"shard": shard} if shard else {})}
        if judged:
            with clock.measure("judge"):
                report["judge"] = judge_generations(recipe, folder / GENERATIONS, folder)
            report["comparable"]["judge"] = report["judge"]["fingerprint"]
        values = {"ids": sampled.ids, "strata": sampled.strata, "over": sampled.over,
                  "scores": [asdict(score) for score in sampled.scores]}
        if clean and continuer:
            _fluency(recipe, folder, continuer, clean, clock, report, values)
        _write(folder, report, values)
        say(f"{arm}: " + ", ".join(f"{name} {human_seconds(took)}" for name, took in clock.seconds.items()))
        return folder.result


def _write(folder: StepFolder, report: dict[str, Any], values: dict[str, Any]) -> None:
    (folder / VALUES).write_text(json.dumps(values), "utf-8")
    (folder / REPORT).write_text(json.dumps(report, indent=2, ensure_ascii=False), "utf-8")
    folder.result = _result(report)
    folder.counts = {name: report[name] for name in ("prompts", "continuations", "unscored")}


def _inputs(model: str, prompts: Path, clean: Path | None, generations: Sequence[Path]) -> dict[str, Path]:
    inputs = {"prompts": prompts, **{f"generations {number}": path for number, path in enumerate(generations)}}
    if clean:
        inputs["clean"] = clean
    if (Path(model) / MANIFEST).exists():
        inputs["model"] = Path(model)
    return inputs


def comparable_settings(recipe: Recipe, scorer: ToxicityScorer, prompts: Path) -> dict[str, Any]:
    """What two evaluations must share so that their numbers may be compared."""
    evaluation = recipe.evaluation
    return {"scorer": scorer.fingerprint, "attribute": scorer.attribute, "threshold": evaluation.toxic_threshold,
            "continuations": evaluation.continuations, "seed": recipe.seed, "prompts": sha256_of(prompts)[:16],
            "sampling": evaluation.sampling.model_dump(exclude={"batch_tokens"})}


def _toxicity_report(recipe: Recipe, found: Sampled, clock: Clock) -> dict[str, Any]:
    evaluation = recipe.evaluation
    with clock.measure("intervals"):
        strata = {}
        for stratum in STRATA:
            members = [place for place, member in enumerate(found.strata) if stratum in member]
            if members:
                strata[stratum] = summarise([found.scores[place] for place in members],
                                            samples=evaluation.bootstrap_samples, confidence=evaluation.confidence,
                                            seed=recipe.seed)
                strata[stratum]["refusals"] = share_interval(sum(found.refused[place] for place in members),
                                                             len(members), evaluation.confidence)
    whole = strata["all"]
    if whole["unscored_prompts"] == whole["prompts"]:
        raise DetoxError("not one continuation could be scored", place=recipe.scoring.judging.kind,
                         remedy=f"reasons: {found.reasons or 'unknown'}")
    return {**whole, "unscored_share": whole["unscored"] / whole["continuations"], "unscored_reasons": found.reasons,
            "confidence": evaluation.confidence, "threshold": evaluation.toxic_threshold, "strata": strata,
            "threshold_rule": f"a continuation is toxic where its score is at or over {evaluation.toxic_threshold:g}",
            **found.runs.distinct(), "histogram": found.histogram,
            "attributes": attribute_table(found.over, evaluation.confidence)}


def attribute_table(over: Mapping[str, str], confidence: float) -> dict[str, dict[str, float | None]]:
    """Texts at or over the threshold, one continuation a prompt, for each attribute.

    Args:
        over: attribute -> a character a text, see `llm_detox.evaluation.continuations.Sampled`.

    Returns:
        attribute -> {"count", "of", "share", "low", "high"}; the share is None where no text is scored.
    """
    table: dict[str, dict[str, float | None]] = {}
    for name, flags in over.items():
        count = flags.count("1")
        of = count + flags.count("0")
        found = share_interval(count, of, confidence)
        table[name] = {"count": count, "of": of, "share": found["value"] if of else None, "low": found["low"],
                       "high": found["high"]}
    return table


def _fluency(recipe: Recipe, folder: StepFolder, continuer: Generator, clean: Path, clock: Clock,
             report: dict[str, Any], values: dict[str, Any]) -> None:
    """The arm's perplexity on clean text, and an independent model's on the arm's continuations."""
    passages = list(read_jsonl(clean, required=("text",)))
    texts = [str(record["text"]) for record in passages]
    if isinstance(continuer, ReadingGenerator):  # a served model gives texts, no likelihoods
        with clock.measure("clean text"), task("reading clean text", len(texts), "texts") as work:
            own = continuer.losses(texts, on_progress=work.advance)
        report["perplexity_interval"] = _perplexity(recipe, own)
        report["perplexity"] = report["perplexity_interval"]["value"]
        values["clean"] = own
    with clock.measure("clean continuations"):
        pairs = _clean_continuations(recipe, continuer, texts)
    write_jsonl(folder / CLEAN_GENERATIONS, ({"prompt": start, "text": text} for start, text in pairs))
    report["clean_refusals"] = without_nan(refusal_rate([text for _, text in pairs], recipe.evaluation.confidence))
    prompted = first_continuations(folder / GENERATIONS, recipe.evaluation.clean_prompts)
    with clock.measure("fluency model"):
        judge, note = _fluency_judge(recipe)
        with task("reading continuations", len(pairs) + len(prompted), "texts") as work:
            read, other = (judge.losses([text or "" for _, text in some], contexts=[start for start, _ in some],
                                        on_progress=work.advance) for some in (pairs, prompted))
    report["continuation_perplexity"] = {**_perplexity(recipe, read), "model": judge.name, "note": note,
                                         **WordRuns().add(text for _, text in pairs if text).distinct()}
    if any(count for _, count in other):
        report["prompted_perplexity"] = {**_perplexity(recipe, other), "model": judge.name, "note": note}
    values |= {"clean_continuations": read, "prompted": other}


def first_continuations(generations: Path, count: int) -> list[tuple[str, str | None]]:
    """(prompt, its first continuation) of the prompts with the lowest hash of their id, the same ones for every arm."""
    chosen = heapq.nsmallest(count, read_jsonl(generations), key=lambda record: hash_fraction(record["id"], "fluency"))
    return [(record["prompt"]["text"], record["generations"][0]["text"]) for record in chosen]


def _clean_continuations(recipe: Recipe, continuer: Generator, texts: Sequence[str]) -> list[tuple[str, str | None]]:
    """(first words of a passage, a continuation of them), in the order of the passages; None for a missing one."""
    evaluation = recipe.evaluation
    starts = [" ".join(text.split()[:_CLEAN_PROMPT_WORDS]) for text in texts[:evaluation.clean_prompts]]
    starts = [start for start in starts if start]
    drawn = dict(continuer.continuations(
        starts, k=evaluation.clean_continuations, sampling=evaluation.sampling, seed=recipe.seed,
        keys=[f"clean {number}" for number in range(len(starts))]))
    return [(start, text) for number, start in enumerate(starts) for text in drawn[number]]


def _fluency_judge(recipe: Recipe) -> tuple[FluencyModel, str]:
    """The recipe's fluency model; the base where there is none, and a word on which it is."""
    wanted = recipe.evaluation.fluency_model
    if wanted:
        try:
            return FluencyModel(wanted), "read by an independent model"
        except DetoxError as error:
            say(f"the fluency model is not to be had, the base reads instead: {error.message}")
            return FluencyModel(recipe.model.source), f"read by the base model: {wanted}: {error.message}"
    return FluencyModel(recipe.model.source), "read by the base model: the recipe names no fluency model"


def _perplexity(recipe: Recipe, losses: Sequence[Loss]) -> dict[str, float]:
    usable = [(loss, count) for loss, count in losses if count]
    if not usable:
        raise DetoxError("there is no clean text to measure the perplexity of", remedy="give passages of some words")
    sums, counts = (np.array(column, dtype=np.float64) for column in zip(*usable, strict=True))
    nll = ratio_interval(sums, counts, samples=recipe.evaluation.bootstrap_samples,
                         confidence=recipe.evaluation.confidence, seed=recipe.seed)
    return {"value": math.exp(nll.value), "low": math.exp(nll.low), "high": math.exp(nll.high),
            "tokens": int(counts.sum())}


def _describe(recipe: Recipe, scorer: ToxicityScorer) -> dict[str, Any]:
    return {"name": scorer.name, "version": scorer.version, "device": scorer.device,
            "fingerprint": scorer.fingerprint, "attribute": scorer.attribute,
            "attributes": list(scorer.attributes), "source": recipe.scoring.judging.source}


def _result(report: dict[str, Any]) -> dict[str, Any]:
    names = ("arm", *METRICS, "perplexity", "unscored", "unscored_share", "distinct_2", "prompts", "continuations")
    result = {name: report[name] for name in names if name in report}
    if "continuation_perplexity" in report:
        result["continuation_perplexity"] = report["continuation_perplexity"]["value"]
        result["fluency_model"] = report["continuation_perplexity"]["model"]
    if "judge" in report:
        result |= {name: report["judge"][name] for name in ("unsafe_share", "no_decision")}
    return {**result, "scorer": report["scorer"]["fingerprint"], "seconds": report["seconds"]}
