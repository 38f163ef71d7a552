"""`train-scorer`: a local scorer of Perspective's attributes from records that carry its scores."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from llm_detox.data.records import hash_fraction, read_jsonl
from llm_detox.errors import DetoxError
from llm_detox.progress import say
from llm_detox.recipe.scorers import LABELLED_TEXT, SENTENCE_ENCODER, WEIGHTS_FILE, ScorerSection, source_name
from llm_detox.runs.folders import sha256_of, step_folder
from llm_detox.scoring.attributes import (
    AttributeModel,
    calibrate,
    fit_attributes,
    load_attribute_scorer,
    save_attribute_model,
)
from llm_detox.scoring.base import ATTRIBUTES
from llm_detox.scoring.features import Floats, area_under_roc, calibration_error
from llm_detox.scoring.languages import main_languages
from llm_detox.scoring.learnt import LEARNT_FILE, learnt_by, marks, write_marks
from llm_detox.scoring.ngram import NgramScorer, load_ngram_scorer
from llm_detox.scoring.text_vectors import PieceEncoder, SentenceEncoder, TextEncoder, Vectors

THRESHOLD = 0.5
WITHOUT = "none"
_ENOUGH_POSITIVES = 20
_FOLDS = 5
_LANGUAGE_SAMPLE = 2000
_FEW_TEXTS = 20_000  # each fold's calibration counts; with more texts one fold is enough


@dataclass(frozen=True)
class Agreement:
    """How an attribute's scores agree with the stored ones of the held-out texts.

    Attributes:
        auc: area under ROC where a stored score of .5 or more is positive.
        spearman: rank correlation.
        calibration_error: see `llm_detox.scoring.features.calibration_error`.
        positives: number of texts.
    """

    auc: float
    spearman: float
    calibration_error: float
    positives: int


@dataclass(frozen=True)
class ScorerMeasures:
    """What is measured of a trained scorer.

    Attributes:
        attributes: how each agrees with the stored scores.
        mean_auc: over the attributes with enough positives; None where none has.
        texts: number of held-out texts.
        texts_per_second: how fast they were scored.
        fingerprint: of the scorer.
        weights_sha256: of its weights file.
        contains: the labelled text of the scorer that is now in it; "" without one.
    """

    attributes: dict[str, Agreement]
    mean_auc: float | None
    texts: int
    texts_per_second: int
    fingerprint: str
    weights_sha256: str
    contains: str


@dataclass(frozen=True)
class ScoredTexts:
    """Texts with stored scores.

    Attributes:
        texts: n of them.
        scores: [n, a] in [0, 1].
        attributes: the names of the columns.
        places: [n] in [0, 1), by which the texts are split; those of one record have the same.
    """

    texts: list[str]
    scores: Floats
    attributes: list[str]
    places: Floats

    def part(self, members: NDArray[np.bool_]) -> ScoredTexts:
        """Those that are True in `members` [n]."""
        return ScoredTexts([self.texts[i] for i in np.nonzero(members)[0]], self.scores[members], self.attributes,
                           self.places[members])


def train_scorer(records: Path, *, output: Path, held_out: float = 0.2, labelled: str | None = None,
                 encoder: str | None = None, whole_sentences: bool = False) -> ScorerMeasures:
    """Fit, calibrate and measure an attribute scorer.

    Args:
        records: RealToxicityPrompts records (prompt and continuation each with scores), or `{"text", attributes...}`.
        output: gets `scorer.safetensors`, hashes of the texts that it has learnt (`learnt.safetensors`) and a model
            card; use the folder as `source` of the scorer kind `attributes`.
        held_out: share of the records that only measures. The records' own hash decides, and a prompt stays with
            its continuation.
        labelled: labelled text for the supporting scorer (see `load_ngram_scorer`); None takes the packaged one
            where it is installed, "none" does without, so that the scorer may judge what `ngram` trained.
        encoder: sentence encoder that says what a text is about; None takes the packaged one where it is installed.
        whole_sentences: whether the encoder reads the texts, some hundred a second; otherwise the vectors of its word
            pieces are averaged, tens of thousands a second.

    Raises:
        DetoxError: too few scored texts.
    """
    settings = {"held_out": held_out, "labelled": labelled, "encoder": encoder, "whole_sentences": whole_sentences,
                "step": "train-scorer"}
    with step_folder(output, "scorer", settings=settings, inputs={"records": records}) as folder:
        scored = scored_texts(records)
        held = scored.places < held_out
        training, test = scored.part(~held), scored.part(held)
        if min(len(training.texts), len(test.texts)) < 10 * _FOLDS:
            raise DetoxError(f"only {len(scored.texts)} texts have scores", place=str(records),
                             remedy="give some hundred records with Perspective's scores")
        base = _supporting_scorer(labelled)
        text_encoder = _open_encoder(encoder, whole_sentences)
        model = _fit_and_calibrate(training, base, text_encoder)
        model.base_source = source_name(labelled or LABELLED_TEXT) if base else ""
        model.languages = main_languages(training.texts[:_LANGUAGE_SAMPLE])
        save_attribute_model(model, folder.path)
        learnt = learnt_by(ScorerSection(kind="ngram", source=labelled)) if base else None
        write_marks(np.union1d(marks(training.texts), np.array([], dtype=np.uint64) if learnt is None else learnt),
                    folder / LEARNT_FILE)
        measures = measure(folder.path, test, contains=model.base_source)
        folder.finish(measures)
        folder.counts.update(training_texts=len(training.texts), held_out_texts=len(test.texts))
        (folder / "README.md").write_text(_card(measures, records, len(training.texts), base, text_encoder), "utf-8")
        for name, row in measures.attributes.items():
            say(f"{name}: area under ROC {row.auc:.3f}, rank correlation {row.spearman:.3f}, "
                f"calibration error {row.calibration_error:.3f} ({row.positives} positives)")
    return measures


def scored_texts(path: Path) -> ScoredTexts:
    """The texts of records that have scores of all the attributes that any text has.

    Raises:
        DetoxError: there is none.
    """
    rows = list(_rows(path))
    names = [name for name in ATTRIBUTES if any(isinstance(scores.get(name), int | float) for _, scores, _ in rows)]
    usable = [(text, [scores[name] for name in names], place) for text, scores, place in rows
              if all(isinstance(scores.get(name), int | float) for name in names)]
    if not names or not usable:
        raise DetoxError("no text has scores", place=str(path),
                         remedy='records look like {"prompt": {"text": "...", "toxicity": 0.1, ...}, ...}')
    return ScoredTexts([text for text, _, _ in usable], np.array([values for _, values, _ in usable], dtype=np.float64),
                       [*names], np.array([place for _, _, place in usable]))


def _rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any], float]]:
    """Each text, the part of the record that holds it and its scores, and the record's place in [0, 1)."""
    for record in read_jsonl(path):
        parts = [record[name] for name in ("prompt", "continuation") if isinstance(record.get(name), dict)] or [record]
        key = " ".join(str(part.get("text")) for part in parts)
        for part in parts:
            if isinstance(part.get("text"), str) and part["text"].strip():
                yield part["text"], part, hash_fraction(key, "train-scorer")


def _supporting_scorer(labelled: str | None) -> NgramScorer | None:
    if labelled == WITHOUT:
        return None
    try:
        return load_ngram_scorer(labelled)
    except DetoxError as error:
        if labelled:
            raise
        say(f"trained without labelled text: {error.message}")
        return None


def _open_encoder(source: str | None, whole_sentences: bool) -> TextEncoder | None:
    try:
        encoder = SentenceEncoder(source or SENTENCE_ENCODER)
    except DetoxError as error:
        if source or whole_sentences:
            raise
        say(f"trained without a sentence encoder: {error.message}")
        return None
    return encoder if whole_sentences else encoder.pieces()


def _fit_and_calibrate(training: ScoredTexts, base: NgramScorer | None, encoder: TextEncoder | None) -> AttributeModel:
    """Weights from all the texts; the calibration from what models said of folds that they did not see."""
    texts, scores, names, places = training.texts, training.scores, training.attributes, training.places
    if isinstance(encoder, PieceEncoder):
        encoder.fit(texts)
    known = _Known(texts, encoder.encode(texts)) if encoder else None
    fold = np.searchsorted(np.quantile(places, np.arange(1, _FOLDS) / _FOLDS), places, side="right")
    raw = np.full(scores.shape, np.nan)
    for number in range(_FOLDS if len(texts) < _FEW_TEXTS else 1):
        others, unseen = training.part(fold != number), training.part(fold == number)
        helper = fit_attributes(others.texts, others.scores, names, base, known)
        raw[fold == number] = helper.raw(unseen.texts)
    model = fit_attributes(texts, scores, names, base, known)
    done = ~np.isnan(raw[:, 0])
    calibrate(model, raw[done], scores[done])
    model.encoder = encoder
    return model


class _Known:
    """The vectors of the training texts, read once for all folds."""

    def __init__(self, texts: Sequence[str], vectors: Vectors) -> None:
        self._vectors = dict(zip(texts, vectors, strict=True))

    def encode(self, texts: Sequence[str]) -> Vectors:
        return np.stack([self._vectors[text] for text in texts])


def measure(folder: Path, test: ScoredTexts, *, contains: str) -> ScorerMeasures:
    """Agreement of a saved scorer with the stored scores of texts that it was not fitted on."""
    scorer = load_attribute_scorer(folder)
    started = time.perf_counter()
    predicted = scorer.model.predict(test.texts)
    seconds = time.perf_counter() - started
    rows = {name: _agreement(predicted[:, column], test.scores[:, column])
            for column, name in enumerate(scorer.attributes)}
    counted = [row.auc for row in rows.values() if row.positives >= _ENOUGH_POSITIVES]
    return ScorerMeasures(rows, float(np.mean(counted)) if counted else None, len(test.texts),
                          round(len(test.texts) / seconds), scorer.fingerprint, sha256_of(folder / WEIGHTS_FILE),
                          contains)


def _agreement(predicted: Floats, stored: Floats) -> Agreement:
    labels = stored >= THRESHOLD
    return Agreement(area_under_roc(predicted, labels), float(stats.spearmanr(predicted, stored).statistic),
                     calibration_error(predicted, stored), int(labels.sum()))


def _card(measures: ScorerMeasures, records: Path, trained_on: int, base: NgramScorer | None,
          encoder: TextEncoder | None) -> str:
    lines = "\n".join(
        f"| {name} | {row.auc:.3f} | {row.spearman:.3f} | {row.calibration_error:.3f} | {row.positives} |"
        for name, row in measures.attributes.items())
    inputs = ["hashed word and character n-grams"]
    if base:
        inputs.append(f"what a scorer of labelled comments (`{base.fingerprint}`) finds in the text")
    if encoder:
        inputs.append("a sentence encoder's reading of the text" if isinstance(encoder, SentenceEncoder)
                      else "the mean vector of the text's word pieces, from a sentence encoder")
    shared = ("\nIt contains the scorer kind `ngram` of the same labelled text: where that one trains or accepts, this "
              "one is no independent judge.\n") if base else ""
    return f"""---
library_name: llm-detox
pipeline_tag: text-classification
tags: [toxicity, llm-detox]
---

# Attribute scorer

Ridge regression on stored Perspective scores ({trained_on:,} texts of `{records.name}`). Inputs: {"; ".join(inputs)}.
Calibrated on texts that the weights had not seen. Prompt and continuation of a record stay on one side of every split.

Measured on {measures.texts:,} held-out texts, {measures.texts_per_second:,} texts a second:

| attribute | area under ROC at .5 | rank correlation | calibration error | positives |
|---|---|---|---|---|
{lines}

Mean area under ROC over the attributes with at least {_ENOUGH_POSITIVES} positives: {_shown(measures.mean_auc)}.

## Limitations

It repeats what Perspective said about English web text, with its faults, and knows words more than meaning:
quotation, irony and implicit hate are beyond it. It is no judge of people.
{shared}"""


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
