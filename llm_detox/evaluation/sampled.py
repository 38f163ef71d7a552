"""Continuations drawn and scored, appended as prompts are finished, then put in order and folded into numbers."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from llm_detox.data.records import JsonlAppender, Record
from llm_detox.evaluation.judging import is_refusal
from llm_detox.evaluation.metrics import PromptScore, distinct_of, prompt_score, strata_of, word_pairs
from llm_detox.folders import StepFolder
from llm_detox.generation.continuers import Continuer, Texts, record_offsets
from llm_detox.progress import task
from llm_detox.recipe import Recipe
from llm_detox.scoring.toxicity import ToxicityScorer

GENERATIONS = "generations.jsonl"
_DRAWN = "drawn.jsonl"  # in the order in which prompts are finished, while the step runs
_SCORED_AT_ONCE = 256
_DIGITS = 6  # a score's last digits depend on its neighbours in the batch; shards must give what one run gives
_DIVERSITY_SAMPLE = 4  # continuations of a prompt that enter distinct-2: the measure falls with the amount of text
HISTOGRAM_BINS = 20


@dataclass
class Clock:
    """Where the time goes."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = round(self.seconds.get(name, 0.0) + time.monotonic() - started, 2)


@dataclass
class Sampled:
    """All prompts' numbers, in the order of the prompts.

    Attributes:
        attributes: name -> score of each prompt's first continuation.
        histogram: scored continuations in `HISTOGRAM_BINS` bins over [0, 1].
        distinct_2: of each prompt's first continuations.
        refused: prompts whose first continuation is a refusal.
        reasons: why texts are unscored, as far as this run has seen.
    """

    ids: list[str] = field(default_factory=list)
    strata: list[list[str]] = field(default_factory=list)
    scores: list[PromptScore] = field(default_factory=list)
    attributes: dict[str, list[float | None]] = field(default_factory=dict)
    histogram: list[int] = field(default_factory=lambda: [0] * HISTOGRAM_BINS)
    distinct_2: float = 0.0
    refused: int = 0
    reasons: dict[str, int] = field(default_factory=dict)


def draw_and_score(recipe: Recipe, folder: StepFolder, records: Sequence[Record], continuer: Continuer,
                   scorer: ToxicityScorer, clock: Clock) -> Sampled:
    """Draw and score what the folder does not hold yet, write `generations.jsonl`, and fold the scores.

    The drawn lines stay in the folder until it is finished, so that a later failure costs no sampling.
    """
    started = time.monotonic()
    lost = _append(recipe, folder, records, continuer, scorer, clock)
    clock.seconds["sampling"] = round(time.monotonic() - started - clock.seconds.get("scoring", 0.0), 2)
    found = _collect(recipe, folder, records, scorer)
    found.reasons = dict(scorer.failures) | ({"no continuation": lost} if lost else {})
    return found


def _append(recipe: Recipe, folder: StepFolder, records: Sequence[Record], continuer: Continuer,
            scorer: ToxicityScorer, clock: Clock) -> int:
    """Append `{"id", "generations"}` for every prompt that is not there yet; returns the missing continuations."""
    evaluation = recipe.evaluation
    lost = 0
    with JsonlAppender(folder.work_file(_DRAWN)) as drawn, \
            task("sampling", len(records) * evaluation.continuations, "continuations") as work:
        # What a server failed to give is asked for again; of two lines of a prompt the later one counts.
        done = {record["id"] for record in drawn.existing
                if all(generation["text"] is not None for generation in record["generations"])}
        drawn.existing = []
        work.skip(len(done) * evaluation.continuations)
        rest = [record for record in records if record["id"] not in done]
        waiting: list[tuple[str, Texts]] = []
        for index, texts in continuer.continuations(
                [record["prompt"]["text"] for record in rest], k=evaluation.continuations,
                sampling=evaluation.sampling, seed=recipe.seed, keys=[record["id"] for record in rest],
                on_progress=work.advance):
            waiting.append((rest[index]["id"], texts))
            lost += texts.count(None)
            if len(waiting) * evaluation.continuations >= _SCORED_AT_ONCE:
                _score(drawn, waiting, scorer, clock)
        _score(drawn, waiting, scorer, clock)
    return lost


def _score(drawn: JsonlAppender, waiting: list[tuple[str, Texts]], scorer: ToxicityScorer, clock: Clock) -> None:
    with clock.measure("scoring"):
        scored = iter(scorer.score_attributes([text for _, texts in waiting for text in texts if text is not None]))
    unknown = dict.fromkeys(scorer.attributes)
    for identity, texts in waiting:
        generations: list[Record] = [{"text": text, **unknown} for text in texts]
        for generation in generations:
            if generation["text"] is not None and (answer := next(scored)):
                generation.update({name: round(score, _DIGITS) for name, score in answer.items()})
        drawn.write({"id": identity, "generations": generations})
    drawn.flush()
    waiting.clear()


def _collect(recipe: Recipe, folder: StepFolder, records: Sequence[Record], scorer: ToxicityScorer) -> Sampled:
    """Put the drawn lines into the order of the prompts, in the original's record format, and fold the scores."""
    drawn, threshold = folder / _DRAWN, recipe.evaluation.toxic_threshold
    offsets = dict(record_offsets(drawn))
    found = Sampled(attributes={name: [] for name in scorer.attributes})
    pairs: Counter[tuple[str, str]] = Counter()
    with drawn.open("rb") as source, (folder / GENERATIONS).open("w", encoding="utf-8") as target:
        for record in records:
            source.seek(offsets[record["id"]])
            generations = json.loads(source.readline())["generations"]
            target.write(json.dumps({**record, "generations": generations}, ensure_ascii=False) + "\n")
            scores = [generation[scorer.attribute] for generation in generations]
            found.ids.append(record["id"])
            found.strata.append(strata_of(record, threshold))
            found.scores.append(prompt_score(scores, threshold))
            found.refused += is_refusal(generations[0]["text"] or "")
            for name, column in found.attributes.items():
                column.append(generations[0][name])
            for score in scores:
                if score is not None:
                    found.histogram[min(int(score * HISTOGRAM_BINS), HISTOGRAM_BINS - 1)] += 1
            pairs.update(word_pairs(generation["text"] or "" for generation in generations[:_DIVERSITY_SAMPLE]))
    found.distinct_2 = distinct_of(pairs)
    return found
