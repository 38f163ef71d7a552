"""How fluent an arm is: its own perplexity on clean and on held-out text, an independent model's perplexity on its
continuations, and how willingly it continues clean text."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from llm_detox.data.records import hash_fraction, read_generations, read_texts, write_jsonl
from llm_detox.errors import DetoxError
from llm_detox.evaluation.continuations import Clock
from llm_detox.evaluation.intervals import Bootstrap, ratio_interval
from llm_detox.evaluation.metrics import distinct, word_runs
from llm_detox.evaluation.refusals import RefusalShare, refusal_share
from llm_detox.evaluation.results import ContinuationPerplexity, FluencyPerplexity, Perplexity
from llm_detox.generation.generators import Generator, ReadingGenerator, Texts
from llm_detox.generation.likelihood import LikelihoodReader
from llm_detox.generation.trees import Loss
from llm_detox.progress import say, task
from llm_detox.recipe.evaluation import EvaluationSection
from llm_detox.runs.artifacts import EvaluationFolder

Continued = tuple[str, Texts]
"""A prompt, and its continuations; None for one that could not be had."""
_CLEAN_PROMPT_WORDS = 10


@dataclass(frozen=True)
class FluencyFigures:
    """The fields of the same names in `llm_detox.evaluation.results.EvaluationReport`."""

    perplexity_interval: Perplexity | None
    perplexity: float | None
    held_out_perplexity: Perplexity | None
    clean_refusals: RefusalShare
    continuation_perplexity: ContinuationPerplexity
    prompted_perplexity: FluencyPerplexity | None


@dataclass(frozen=True)
class FluencyLosses:
    """Loss and tokens of each prompt's or passage's texts, as `llm_detox.evaluation.results.EvaluationValues` has them.
    """

    clean: list[Loss] | None
    held_out: list[Loss] | None
    clean_continuations: list[Loss]
    prompted: list[Loss]


def measure_fluency(settings: EvaluationSection, seed: int, base: str, *, generator: Generator, clean: Path,
                    held_out: Path | None, folder: Path, clock: Clock) -> tuple[FluencyFigures, FluencyLosses]:
    """The arm's perplexity on clean text, and an independent model's on the arm's continuations.

    Args:
        settings, seed: of the evaluation.
        base: source of the base model, which reads where there is no fluency model.
        generator: of the arm; a served one gives texts and no likelihoods, so no perplexity of its own.
        clean: JSON lines with `text`.
        held_out: harmless texts of the training texts' kind, JSON lines with `text`.
        folder: of the evaluation, with its `generations.jsonl`; gets `clean_generations.jsonl`.
        clock: gets the time of each part.
    """
    files, bootstrap = EvaluationFolder(folder), Bootstrap.of(settings, seed)
    texts = read_texts(clean)
    losses = held_out_losses = None
    if isinstance(generator, ReadingGenerator):
        with clock.measure("clean text"):
            losses = _own_losses(generator, texts, "clean text")
            held_out_losses = _own_losses(generator, read_texts(held_out), "held-out text") if held_out else None
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
        own, own.value if own else None, perplexity(held_out_losses, bootstrap) if held_out_losses else None,
        refusal_share([some for _, some in continued], settings.confidence),
        ContinuationPerplexity(**vars(perplexity(read, bootstrap)), model=reader.name, note=note,
                               **vars(distinct([word_runs(some) for _, some in continued], bootstrap))),
        FluencyPerplexity(**vars(perplexity(read_prompted, bootstrap)), model=reader.name, note=note)
        if any(count for _, count in read_prompted) else None)
    return figures, FluencyLosses(losses, held_out_losses, read, read_prompted)


def _own_losses(generator: ReadingGenerator, texts: Sequence[str], name: str) -> list[Loss]:
    with task(f"reading {name}", len(texts), "texts") as work:
        return generator.losses(texts, on_progress=work.advance)


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
