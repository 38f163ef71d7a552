"""A linear toxicity scorer on hashed n-grams, trained in seconds on labelled text and kept in the cache.

Its weights say which words make a text toxic, which the rewriting uses. Its probability is calibrated (Platt)
on texts held out by hash. A share of the labelled texts is kept from it, so that a recipe may train on them.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

from llm_detox.data.labels import Labels, is_kept_from_scorers, read_label
from llm_detox.data.records import clean_text, hash_fraction, same_text_key
from llm_detox.data.sources import fetch
from llm_detox.errors import DetoxError
from llm_detox.progress import say, task
from llm_detox.recipe.scorers import LABELLED_TEXT
from llm_detox.runs.cache import cache_dir, made_once
from llm_detox.runs.folders import sha256_of
from llm_detox.scoring.base import Scores, ToxicityScorer
from llm_detox.scoring.features import (
    BUCKETS,
    Encoded,
    Floats,
    area_under_roc,
    encode,
    features,
    platt,
    platt_targets,
    sigmoid,
    word_shares,
)
from llm_detox.scoring.lookalikes import plain

# Of the features, the training, and the keys by which texts are kept from it: a change makes new weights and a new
# fingerprint.
_VERSION = "3"
_HELD_OUT = 0.1
_MAX_TRAINING_CHARS = 500
Weights = NDArray[np.float32]


@dataclass(frozen=True)
class Training:
    """How the weights are fitted: logistic regression, AdaGrad, a fixed order."""

    epochs: int = 2
    batch: int = 1024
    learning_rate: float = 0.4
    l2: float = 0.0


class NgramScorer(ToxicityScorer):
    """P(toxic) = sigmoid(scale * (weights . features + bias) + shift)."""

    def __init__(self, weights: Weights, calibration: tuple[float, float, float], fingerprint: str,
                 figures: dict[str, float], attribute: str = "toxicity") -> None:
        super().__init__("ngram", fingerprint, ("toxicity",), attribute, batch_size=2048, version=_VERSION)
        self.weights = weights
        self.bias, self.scale, self.shift = calibration
        self.figures = figures

    def logits(self, texts: Sequence[str]) -> Floats:
        """[n] calibrated log-odds of being toxic."""
        raw = features(_encoded(texts)).logits(self.weights)
        return np.asarray(self.scale * (raw + self.bias) + self.shift, dtype=np.float64)

    def score_batch(self, texts: Sequence[str]) -> list[Scores | None]:
        return [{"toxicity": float(value)} for value in sigmoid(self.logits(texts))]

    def word_attributions(self, texts: Sequence[str]) -> list[list[tuple[str, float]]]:
        """For each text its white-space words (`text.split()`) with what each adds to the log-odds.

        The sums of a text, plus the log-odds of a text without any n-gram, are its `logits`.
        """
        encoded = _encoded(texts)
        found = features(encoded)
        shares = word_shares(encoded, found, self.scale * self.weights[found.bucket] * found.value)
        return [list(zip(text.split(), row, strict=True)) for text, row in zip(texts, shares, strict=True)]


def _encoded(texts: Sequence[str]) -> Encoded:
    """The texts word by word as they are seen: none of them is lost or parted, so that each has its share."""
    return encode([text if text.isascii() else " ".join(map(_seen_word, text.split())) for text in texts])


def _seen_word(word: str) -> str:
    return "".join(plain(word).split()) or "-"


def word_attributions(scorer: ToxicityScorer, texts: Sequence[str]) -> list[list[tuple[str, float]]]:
    """See `NgramScorer.word_attributions`.

    Raises:
        DetoxError: the scorer is not linear in its words.
    """
    if not isinstance(scorer, NgramScorer):
        raise DetoxError("this scorer cannot say what a word adds", place=scorer.name,
                         remedy="use `scoring.training.kind: ngram`")
    return scorer.word_attributions(texts)


def load_ngram_scorer(source: str | None = None, *, attribute: str = "toxicity") -> NgramScorer:
    """The scorer for labelled text (CSV with the columns `text` and `is_offensive`); fitted once, then cached.

    Raises:
        DetoxError: the source is missing, or has no usable rows.
    """
    path = fetch(source or LABELLED_TEXT, kind="dataset")
    if path.suffix == ".safetensors":
        return _read(path, attribute)
    cached = cache_dir("scorers") / f"ngram-{_VERSION}-{sha256_of(path)[:16]}.safetensors"
    scorer = _read(made_once(cached, lambda target: _fit(path, target)), attribute)
    if (source or LABELLED_TEXT) == LABELLED_TEXT:
        scorer.languages = ("en",)
    return scorer


def _read(path: Path, attribute: str) -> NgramScorer:
    try:
        with safe_open(path, framework="numpy") as file:
            weights = file.get_tensor("weights").astype(np.float32)
            bias, scale, shift = file.get_tensor("calibration").tolist()
            figures = json.loads((file.metadata() or {}).get("figures", "{}"))
    except Exception as error:  # safetensors raises its own kinds
        raise DetoxError(f"not the weights of a scorer of labelled text ({error})", place=str(path),
                         remedy="fetch it again; what lies in the cache is made anew where it is removed") from None
    return NgramScorer(weights, (bias, scale, shift), f"ngram-{sha256_of(path)[:16]}", figures, attribute)


def read_labelled(path: Path) -> tuple[list[str], NDArray[np.bool_]]:
    """Texts and labels (True for toxic) of a CSV file, without those that are kept from scorers.

    Raises:
        DetoxError: a column is missing, one of the classes has no text, or too many labels say nothing.
    """
    csv.field_size_limit(10**7)
    usable: list[tuple[str, str, bool]] = []  # key, text, whether it is toxic
    labels = Labels()
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        rows = csv.DictReader(file)
        for column in ("text", "is_offensive"):
            if column not in (rows.fieldnames or ()):
                raise DetoxError(f"the column {column!r} is missing", place=str(path),
                                 remedy="the training text of a scorer has the columns `text` and `is_offensive`")
        for number, row in enumerate(rows, start=1):
            key = same_text_key(clean_text(row["text"]))
            if not row["text"].strip() or is_kept_from_scorers(key):
                continue
            label = read_label(row["is_offensive"], f"{path}, record {number}")
            labels.add(key, label)
            if label is not None:
                usable.append((key, row["text"][:_MAX_TRAINING_CHARS], label))
    labels.check(str(path))
    known = [(text, label) for key, text, label in usable if key not in labels.contradictory]
    texts, toxic = [text for text, _ in known], np.array([label for _, label in known], dtype=bool)
    if not toxic.any() or toxic.all():
        raise DetoxError("texts of both classes are needed", place=str(path),
                         remedy="`is_offensive` is 1 for toxic and 0 for other texts")
    return texts, toxic


def _fit(source: Path, target: Path) -> None:
    say(f"training the n-gram scorer on {source.name} (once; kept in {target.parent})")
    texts, toxic = read_labelled(source)
    held = np.array([hash_fraction(text, "ngram-held-out") < _HELD_OUT for text in texts])
    if len(set(toxic[held])) < 2:
        held = np.ones(len(texts), dtype=bool)  # too little text to hold any out
    train = np.nonzero(~held)[0] if not held.all() else np.arange(len(texts))
    weights, bias = fit_weights([texts[i] for i in train], toxic[train].astype(np.float64))
    test = np.nonzero(held)[0]
    raw = _raw_logits(weights, [texts[i] for i in test]) + bias
    scale, shift = platt(raw, platt_targets(toxic[test])).tolist()
    figures = {"held_out_texts": float(len(test)), "held_out_auc": area_under_roc(raw, toxic[test])}
    save_file({"weights": weights.astype(np.float16), "calibration": np.array([bias, scale, shift])}, target,
              metadata={"figures": json.dumps(figures), "source": source.name, "version": _VERSION})
    target.chmod(0o644)  # safetensors writes for the owner alone


def fit_weights(texts: Sequence[str], targets: Floats, how: Training = Training()) -> tuple[Weights, float]:
    """Logistic regression on the texts' n-grams by AdaGrad, in an order fixed by a seed.

    Args:
        targets: [n] in [0, 1], labels or probabilities.

    Returns:
        weights [BUCKETS] and bias.
    """
    weights = np.zeros(BUCKETS, dtype=np.float32)
    squares = np.full(BUCKETS, 1e-8)
    share = float(np.clip(targets.mean(), 1e-3, 1 - 1e-3))
    bias, bias_square = float(np.log(share / (1 - share))), 1e-8
    order = np.random.Generator(np.random.PCG64(7))
    with task("training the scorer", how.epochs * len(texts), "texts") as work:
        for epoch in range(how.epochs):
            rate = how.learning_rate * (1 - epoch / how.epochs)
            for rows in _batches(order.permutation(len(texts)), how.batch):
                found = features(encode([texts[i] for i in rows]))
                error = sigmoid(found.logits(weights) + bias) - targets[rows]
                gradient = np.bincount(found.bucket, weights=found.value * error[found.row], minlength=BUCKETS)
                touched = np.nonzero(gradient)[0]
                step = gradient[touched] / len(rows) + how.l2 * weights[touched]
                squares[touched] += step**2
                weights[touched] -= (rate * step / np.sqrt(squares[touched])).astype(np.float32)
                slope = float(error.mean())
                bias_square += slope**2
                bias -= rate * slope / bias_square**0.5
                work.advance(len(rows))
    return weights, bias


def _batches(order: NDArray[np.int64], size: int) -> Iterator[NDArray[np.int64]]:
    for first in range(0, len(order), size):
        yield order[first:first + size]


def _raw_logits(weights: Weights, texts: Sequence[str], batch: int = 2048) -> Floats:
    return np.concatenate([features(encode(texts[first:first + batch])).logits(weights)
                           for first in range(0, len(texts), batch)])
