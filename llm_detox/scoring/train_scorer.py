"""`train-scorer`: a local scorer of Perspective's attributes from records that carry its scores."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from llm_detox.data.records import hash_fraction, read_jsonl
from llm_detox.errors import DetoxError
from llm_detox.progress import say
from llm_detox.recipe.scorers import LABELLED_TEXT, SENTENCE_ENCODER, WEIGHTS_FILE, source_name
from llm_detox.runs.folders import sha256_of, step_folder
from llm_detox.scoring.attributes import (
    AttributeModel,
    calibrate,
    fit_attributes,
    load_attribute_scorer,
    save_attribute_model,
)
from llm_detox.scoring.features import Floats
from llm_detox.scoring.ngram import NgramScorer, area_under_roc, load_ngram_scorer
from llm_detox.scoring.text_vectors import PieceReader, SentenceReader, TextEncoder, Vectors

ATTRIBUTES = ("toxicity", "severe_toxicity", "identity_attack", "insult", "threat", "profanity",
              "sexually_explicit", "flirtation")
THRESHOLD = 0.5
WITHOUT = "none"
_ENOUGH_POSITIVES = 20
_FOLDS = 5
_FEW_TEXTS = 20_000  # each fold's calibration counts; with more texts one fold is enough


def train_scorer(records: Path, *, output: Path, held_out: float = 0.2, labelled: str | None = None,
                 encoder: str | None = None, whole_sentences: bool = False) -> dict[str, Any]:
    """Fit, calibrate and measure an attribute scorer.

    Args:
        records: RealToxicityPrompts records (prompt and continuation each with scores), or `{"text", attributes...}`.
        output: gets `scorer.safetensors` and a model card; use the folder as `source` of the scorer kind `ngram`.
        held_out: share of the records that only measures. The records' own hash decides, and a prompt stays with
            its continuation.
        labelled: labelled text for the supporting scorer (see `load_ngram_scorer`); None takes the packaged one
            where it is installed, "none" does without, so that the scorer may judge what `ngram` trained.
        encoder: sentence encoder that says what a text is about; None takes the packaged one where it is installed.
        whole_sentences: whether the encoder reads the texts, some hundred a second; otherwise the vectors of its word
            pieces are averaged, tens of thousands a second.

    Returns:
        Per attribute on the held-out texts: area under ROC at .5, rank correlation, calibration error, positives;
        texts a second; and the labelled text of the scorer that is now in it (`contains`).

    Raises:
        DetoxError: too few scored texts.
    """
    settings = {"held_out": held_out, "labelled": labelled, "encoder": encoder, "whole_sentences": whole_sentences,
                "step": "train-scorer"}
    with step_folder(output, "scorer", settings=settings, inputs={"records": records}) as folder:
        texts, scores, names, place = scored_texts(records)
        test = place < held_out
        if min(int(test.sum()), int((~test).sum())) < 10 * _FOLDS:
            raise DetoxError(f"only {len(texts)} texts have scores", place=str(records),
                             remedy="give some hundred records with Perspective's scores")
        base = _supporting_scorer(labelled)
        reader = _open_reader(encoder, whole_sentences)
        train = np.nonzero(~test)[0]
        model = _fit_and_calibrate([texts[i] for i in train], scores[train], names, base, reader, place[train])
        model.base_source = source_name(labelled or LABELLED_TEXT) if base else ""
        save_attribute_model(model, folder.path)
        figures = measure(folder.path, [texts[i] for i in np.nonzero(test)[0]], scores[test])
        folder.counts.update(training_texts=len(train), held_out_texts=int(test.sum()))
        folder.result.update(figures, contains=model.base_source)
        (folder / "README.md").write_text(_card(figures, records, len(train), base, reader), "utf-8")
        for name, row in figures["attributes"].items():
            say(f"{name}: area under ROC {row['auc']:.3f}, rank correlation {row['spearman']:.3f}, "
                f"calibration error {row['calibration_error']:.3f} ({row['positives']} positives)")
    return folder.result


def scored_texts(path: Path) -> tuple[list[str], Floats, list[str], Floats]:
    """Texts, scores [n, a], the attributes that all have, and each record's place in [0, 1) for splitting."""
    rows = list(_rows(path))
    names = [name for name in ATTRIBUTES if any(isinstance(scores.get(name), int | float) for _, scores, _ in rows)]
    usable = [(text, [scores[name] for name in names], place) for text, scores, place in rows
              if all(isinstance(scores.get(name), int | float) for name in names)]
    if not names or not usable:
        raise DetoxError("no text has scores", place=str(path),
                         remedy='records look like {"prompt": {"text": "...", "toxicity": 0.1, ...}, ...}')
    return ([text for text, _, _ in usable], np.array([values for _, values, _ in usable], dtype=np.float64), names,
            np.array([place for _, _, place in usable]))


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any], float]]:
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


def _open_reader(encoder: str | None, whole_sentences: bool) -> TextEncoder | None:
    source = encoder or SENTENCE_ENCODER
    try:
        reader = SentenceReader(source)
    except DetoxError as error:
        if encoder or whole_sentences:
            raise
        say(f"trained without a sentence encoder: {error.message}")
        return None
    return reader if whole_sentences else reader.pieces()


def _fit_and_calibrate(texts: Sequence[str], scores: Floats, names: Sequence[str], base: NgramScorer | None,
                       reader: TextEncoder | None, place: Floats) -> AttributeModel:
    """Weights from all the texts; the calibration from what models said of folds that they did not see."""
    if isinstance(reader, PieceReader):
        reader.fit(texts)
    known = _Known(texts, reader.read(texts)) if reader else None
    fold = np.searchsorted(np.quantile(place, np.arange(1, _FOLDS) / _FOLDS), place, side="right")
    raw = np.full(scores.shape, np.nan)
    for number in range(_FOLDS if len(texts) < _FEW_TEXTS else 1):
        seen, unseen = np.nonzero(fold != number)[0], np.nonzero(fold == number)[0]
        helper = fit_attributes([texts[i] for i in seen], scores[seen], names, base, known)
        raw[unseen] = helper.raw([texts[i] for i in unseen])
    model = fit_attributes(texts, scores, names, base, known)
    done = ~np.isnan(raw[:, 0])
    calibrate(model, raw[done], scores[done])
    model.reader = reader
    return model


class _Known:
    """The vectors of the training texts, read once for all folds."""

    def __init__(self, texts: Sequence[str], vectors: Vectors) -> None:
        self._vectors = dict(zip(texts, vectors, strict=True))

    def read(self, texts: Sequence[str]) -> Vectors:
        return np.stack([self._vectors[text] for text in texts])


def measure(folder: Path, texts: Sequence[str], scores: Floats) -> dict[str, Any]:
    """Agreement of a saved scorer with the stored scores of other texts."""
    scorer = load_attribute_scorer(folder)
    started = time.perf_counter()
    predicted = scorer.model.predict(texts)
    seconds = time.perf_counter() - started
    rows = {name: _agreement(predicted[:, column], scores[:, column])
            for column, name in enumerate(scorer.attributes)}
    counted = [row["auc"] for row in rows.values() if row["positives"] >= _ENOUGH_POSITIVES]
    return {"attributes": rows, "mean_auc": float(np.mean(counted)) if counted else None, "texts": len(texts),
            "texts_per_second": round(len(texts) / seconds), "fingerprint": scorer.fingerprint,
            "weights_sha256": sha256_of(folder / WEIGHTS_FILE)}


def _agreement(predicted: Floats, stored: Floats) -> dict[str, Any]:
    labels = stored >= THRESHOLD
    return {"auc": area_under_roc(predicted, labels), "spearman": float(stats.spearmanr(predicted, stored).statistic),
            "calibration_error": calibration_error(predicted, stored), "positives": int(labels.sum())}


def calibration_error(predicted: Floats, stored: Floats, bins: int = 10) -> float:
    """Expected calibration error: mean distance between predicted and stored means in bins of equal count."""
    order: list[NDArray[np.int64]] = np.array_split(np.argsort(predicted, kind="stable"), bins)
    return float(sum(len(part) * abs(predicted[part].mean() - stored[part].mean()) for part in order if len(part))
                 / len(predicted))


def _card(figures: dict[str, Any], records: Path, trained_on: int, base: NgramScorer | None,
          reader: TextEncoder | None) -> str:
    lines = "\n".join(
        f"| {name} | {row['auc']:.3f} | {row['spearman']:.3f} | {row['calibration_error']:.3f} | {row['positives']} |"
        for name, row in figures["attributes"].items())
    inputs = ["hashed word and character n-grams"]
    if base:
        inputs.append(f"what a scorer of labelled comments (`{base.fingerprint}`) finds in the text")
    if reader:
        inputs.append("a sentence encoder's reading of the text" if isinstance(reader, SentenceReader)
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

Measured on {figures['texts']:,} held-out texts, {figures['texts_per_second']:,} texts a second:

| attribute | area under ROC at .5 | rank correlation | calibration error | positives |
|---|---|---|---|---|
{lines}

Mean area under ROC over the attributes with at least {_ENOUGH_POSITIVES} positives: {_shown(figures['mean_auc'])}.

## Limitations

It repeats what Perspective said about English web text, with its faults, and knows words more than meaning:
quotation, irony and implicit hate are beyond it. It is no judge of people.
{shared}"""


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
