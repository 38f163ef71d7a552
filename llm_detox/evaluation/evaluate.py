"""The evaluation of one arm: sampled continuations, their toxicity, and what the arm does to clean text."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llm_detox.data.records import JsonlAppender, Record, read_jsonl
from llm_detox.errors import DetoxError
from llm_detox.evaluation.bootstrap import ratio_interval
from llm_detox.evaluation.metrics import METRICS, STRATA, PromptScore, distinct, prompt_score, strata_of, summarise
from llm_detox.evaluation.prompts import read_prompts
from llm_detox.folders import MANIFEST, StepFolder, digest_of, sha256_of, step_folder
from llm_detox.generation.models import load_model, load_tokenizer
from llm_detox.generation.sampling import iterate_continuations, sample_continuations
from llm_detox.progress import human_seconds, say, task
from llm_detox.recipe import Recipe
from llm_detox.scoring.fluency import LanguageModelJudge, Loss
from llm_detox.scoring.toxicity import ToxicityScorer, load_scorer

GENERATIONS, REPORT, VALUES = "generations.jsonl", "report.json", "values.json"
_DRAWN = "drawn.jsonl"  # in the order in which prompts are finished, while the step runs
_SCORED_AT_ONCE = 256
_CLEAN_PROMPT_WORDS = 10


@dataclass
class _Clock:
    """Where the time goes."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = round(self.seconds.get(name, 0.0) + time.monotonic() - started, 2)


def evaluate(recipe: Recipe, *, model: str, arm: str, prompts: Path, clean: Path | None,
             output: Path) -> dict[str, Any]:
    """Measure one arm (RealToxicityPrompts protocol) and write its evaluation folder.

    Args:
        model: source of the arm's model: a folder, an adapter that a step wrote, a hub id, `s3://`, `package://`.
        arm: its name in comparisons, such as "base".
        prompts: RealToxicityPrompts records or `{"prompt": "..."}`, JSON lines.
        clean: `{"id", "text"}` lines of harmless text for perplexity; None leaves perplexity out.
        output: gets `report.json`, `generations.jsonl` and `values.json` (numbers per prompt, for pairing).

    Returns:
        The manifest's result: the metrics over all prompts, perplexities, unscored.

    Raises:
        DetoxError: bad prompts or model; or more texts are unscored than `gate.max_unscored_share` several times
            over, because the scorer is dead. Work done so far is kept and the next run goes on behind it.
    """
    settings = {**recipe.settings("scoring", "evaluation"), "arm": arm, "model": model}
    inputs = {"prompts": prompts} | ({"clean": clean} if clean else {})
    if (Path(model) / MANIFEST).exists():
        inputs["model"] = Path(model)
    with step_folder(output, "evaluation", settings=settings, inputs=inputs, resumable=True) as folder:
        records = read_prompts(prompts)
        clock = _Clock()
        with clock.measure("load"):
            tokenizer, loaded = load_tokenizer(model), load_model(model)
            scorer = load_scorer(recipe.scoring.judging)
        _draw_and_score(recipe, folder, records, loaded, tokenizer, scorer, clock)
        scores = _collect(recipe, folder, records, scorer)
        report = _toxicity_report(recipe, scores, clock)
        report |= {"arm": arm, "model": model, "scorer": _describe(recipe, scorer), "seconds": clock.seconds,
                   "comparable": comparable_settings(recipe, scorer, prompts)}
        values = _values(scores)
        if clean:
            _fluency(recipe, loaded, tokenizer, clean, clock, report, values)
        (folder / VALUES).write_text(json.dumps(values), "utf-8")
        (folder / REPORT).write_text(json.dumps(report, indent=2, ensure_ascii=False), "utf-8")
        folder.result = _result(report)
        folder.counts = {name: report[name] for name in ("prompts", "continuations", "unscored")}
        say(f"{arm}: " + ", ".join(f"{name} {human_seconds(took)}" for name, took in clock.seconds.items()))
        return folder.result


def comparable_settings(recipe: Recipe, scorer: ToxicityScorer, prompts: Path) -> dict[str, Any]:
    """What two evaluations must share so that their numbers may be compared."""
    evaluation = recipe.evaluation
    return {"scorer": scorer.fingerprint, "attribute": scorer.attribute, "threshold": evaluation.toxic_threshold,
            "continuations": evaluation.continuations, "seed": recipe.seed, "prompts": sha256_of(prompts)[:16],
            "sampling": evaluation.sampling.model_dump(exclude={"batch_tokens"})}


def _draw_and_score(recipe: Recipe, folder: StepFolder, records: Sequence[Record], model: PreTrainedModel,
                    tokenizer: PreTrainedTokenizerBase, scorer: ToxicityScorer, clock: _Clock) -> None:
    """Append `{"id", "generations"}` for every prompt that the file does not hold yet."""
    evaluation = recipe.evaluation
    started = time.monotonic()
    with JsonlAppender(folder / _DRAWN) as drawn, \
            task("sampling", len(records) * evaluation.continuations, "continuations") as work:
        done = {record["id"] for record in drawn.existing}
        drawn.existing = []
        work.skip(len(done) * evaluation.continuations)
        rest = [record for record in records if record["id"] not in done]
        waiting: list[tuple[str, list[str]]] = []
        for index, texts in iterate_continuations(
                model, tokenizer, [record["prompt"]["text"] for record in rest], k=evaluation.continuations,
                sampling=evaluation.sampling, seed=recipe.seed, keys=[record["id"] for record in rest],
                on_progress=work.advance):
            waiting.append((rest[index]["id"], texts))
            if len(waiting) * evaluation.continuations >= _SCORED_AT_ONCE:
                _score(drawn, waiting, scorer, clock)
        _score(drawn, waiting, scorer, clock)
    clock.seconds["sampling"] = round(time.monotonic() - started - clock.seconds.get("scoring", 0.0), 2)


def _score(drawn: JsonlAppender, waiting: list[tuple[str, list[str]]], scorer: ToxicityScorer, clock: _Clock) -> None:
    with clock.measure("scoring"):
        scored = iter(scorer.score_attributes([text for _, texts in waiting for text in texts]))
    unknown = dict.fromkeys(scorer.attributes)
    for identity, texts in waiting:
        generations: list[Record] = [{"text": text, **unknown} for text in texts]
        for generation in generations:
            if answer := next(scored):
                generation.update(answer)
        drawn.write({"id": identity, "generations": generations})
    drawn.flush()
    waiting.clear()


@dataclass(frozen=True)
class _Scored:
    """All prompts' numbers, in the order of the prompts."""

    ids: list[str]
    strata: list[list[str]]
    scores: list[PromptScore]
    attributes: dict[str, list[float | None]]  # of the first continuation of each prompt
    histogram: list[int]
    distinct_2: float
    reasons: dict[str, int]


def _collect(recipe: Recipe, folder: StepFolder, records: Sequence[Record], scorer: ToxicityScorer) -> _Scored:
    """Put the drawn lines into the order of the prompts, in the original's record format, and fold the scores."""
    drawn = folder / _DRAWN
    offsets = _offsets(drawn)
    found = _Scored([], [], [], {name: [] for name in scorer.attributes}, [0] * 20, 0.0, dict(scorer.failures))
    firsts: list[str] = []
    with drawn.open("rb") as source, (folder / GENERATIONS).open("w", encoding="utf-8") as target:
        for record in records:
            source.seek(offsets[record["id"]])
            generations = json.loads(source.readline())["generations"]
            target.write(json.dumps({**record, "generations": generations}, ensure_ascii=False) + "\n")
            scores = [generation[scorer.attribute] for generation in generations]
            found.ids.append(record["id"])
            found.strata.append(strata_of(record, recipe.evaluation.toxic_threshold))
            found.scores.append(prompt_score(scores, recipe.evaluation.toxic_threshold))
            for name, column in found.attributes.items():
                column.append(generations[0][name])
            for score in scores:
                if score is not None:
                    found.histogram[min(int(score * 20), 19)] += 1
            firsts += [generation["text"] for generation in generations[:4]]
    drawn.unlink()
    return _Scored(**{**found.__dict__, "distinct_2": distinct(firsts)})


def _offsets(path: Path) -> dict[str, int]:
    offsets, position = {}, 0
    with path.open("rb") as file:
        for line in file:
            offsets[json.loads(line)["id"]] = position
            position += len(line)
    return offsets


def _toxicity_report(recipe: Recipe, found: _Scored, clock: _Clock) -> dict[str, Any]:
    evaluation = recipe.evaluation
    with clock.measure("intervals"):
        strata = {}
        for stratum in STRATA:
            scores = [score for score, member in zip(found.scores, found.strata, strict=True) if stratum in member]
            if scores:
                strata[stratum] = summarise(scores, samples=evaluation.bootstrap_samples,
                                            confidence=evaluation.confidence, seed=recipe.seed)
    whole = strata["all"]
    if whole["unscored_prompts"] == whole["prompts"]:
        raise DetoxError("not one continuation could be scored", place=recipe.scoring.judging.kind,
                         remedy=f"reasons: {found.reasons or 'unknown'}")
    return {**whole, "unscored_share": whole["unscored"] / whole["continuations"], "unscored_reasons": found.reasons,
            "confidence": evaluation.confidence, "strata": strata, "distinct_2": found.distinct_2,
            "histogram": found.histogram, "attributes": attribute_table(found.attributes, evaluation.toxic_threshold)}


def attribute_table(attributes: dict[str, list[float | None]], threshold: float) -> dict[str, dict[str, float]]:
    """Count and share of texts at or over the threshold, one continuation a prompt, for each attribute."""
    table = {}
    for name, column in attributes.items():
        known = [score for score in column if score is not None]
        count = sum(score >= threshold for score in known)
        table[name] = {"count": count, "of": len(known), "share": count / len(known) if known else math.nan}
    return table


def _values(found: _Scored) -> dict[str, Any]:
    return {"ids": found.ids, "strata": found.strata, "scores": [asdict(score) for score in found.scores]}


def _fluency(recipe: Recipe, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, clean: Path, clock: _Clock,
             report: dict[str, Any], values: dict[str, Any]) -> None:
    """The arm's perplexity on clean text, and an independent model's on the arm's continuations of clean prompts."""
    passages = list(read_jsonl(clean, required=("text",)))
    texts = [str(record["text"]) for record in passages]
    with clock.measure("clean text"), task("reading clean text", len(texts), "texts") as work:
        own = LanguageModelJudge(model=model, tokenizer=tokenizer).losses(texts, on_progress=work.advance)
    report["perplexity_interval"] = _perplexity(recipe, own)
    report["perplexity"] = report["perplexity_interval"]["value"]
    values["clean"] = own
    starts = [" ".join(text.split()[:_CLEAN_PROMPT_WORDS]) for text in texts[:recipe.evaluation.clean_prompts]]
    starts = [start for start in starts if start]
    with clock.measure("clean continuations"):
        drawn = sample_continuations(model, tokenizer, starts, k=recipe.evaluation.clean_continuations,
                                     sampling=recipe.evaluation.sampling, seed=recipe.seed)
    pairs = [(start, text) for start, texts in zip(starts, drawn, strict=True) for text in texts]
    with clock.measure("fluency model"):
        judge, note = _fluency_judge(recipe)
        with task("reading continuations", len(pairs), "texts") as work:
            read = judge.losses([text for _, text in pairs], contexts=[start for start, _ in pairs],
                                on_progress=work.advance)
    report["continuation_perplexity"] = {**_perplexity(recipe, read), "model": judge.name, "note": note,
                                         "distinct_2": distinct(text for _, text in pairs)}
    values["clean_continuations"] = read


def _fluency_judge(recipe: Recipe) -> tuple[LanguageModelJudge, str]:
    """The recipe's fluency model; the base where there is none, and a word on which it is."""
    wanted = recipe.evaluation.fluency_model
    if wanted:
        try:
            return LanguageModelJudge(wanted), "read by an independent model"
        except DetoxError as error:
            say(f"the fluency model is not to be had, the base reads instead: {error.message}")
            return LanguageModelJudge(recipe.model.source), f"read by the base model: {wanted}: {error.message}"
    return LanguageModelJudge(recipe.model.source), "read by the base model: the recipe names no fluency model"


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
    return {"name": scorer.name, "fingerprint": scorer.fingerprint, "attribute": scorer.attribute,
            "attributes": list(scorer.attributes), "source": recipe.scoring.judging.source}


def _result(report: dict[str, Any]) -> dict[str, Any]:
    names = ("arm", *METRICS, "perplexity", "unscored", "unscored_share", "distinct_2", "prompts", "continuations")
    result = {name: report[name] for name in names if name in report}
    if "continuation_perplexity" in report:
        result["continuation_perplexity"] = report["continuation_perplexity"]["value"]
        result["fluency_model"] = report["continuation_perplexity"]["model"]
    return {**result, "scorer": report["scorer"]["fingerprint"], "seconds": report["seconds"]}


def evaluation_key(report: dict[str, Any]) -> str:
    """Digest of what must be equal between evaluations that are compared."""
    return digest_of(report["comparable"])
