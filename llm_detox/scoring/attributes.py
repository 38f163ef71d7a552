"""A local stand-in for Perspective: several attributes at once, regressed on stored scores with hashed n-grams.

Linear ridge regression on tf-idf n-grams, with the log-odds of the labelled-text scorer (`ngram.py`) as one more
input, then a calibration for each attribute. The ridge is solved in its dual form by conjugate gradients
(Hestenes and Stiefel 1952), all attributes at once, so a few thousand texts take seconds.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file
from scipy import sparse

from llm_detox.errors import DetoxError
from llm_detox.folders import sha256_of
from llm_detox.progress import track
from llm_detox.scoring.features import BITS, BUCKETS, Floats, encode, features
from llm_detox.scoring.ngram import NgramScorer, sigmoid
from llm_detox.scoring.toxicity import Scores, ToxicityScorer

WEIGHTS_FILE = "scorer.safetensors"
_WORD_FACTOR = 1.5  # words and pairs of words against character n-grams
_FORMAT = "llm-detox-attributes-1"


@dataclass(frozen=True)
class Ridge:
    """How the weights are fitted."""

    penalty: float = 0.05
    base_weight: float = 0.5
    tolerance: float = 1e-4
    most_steps: int = 400


@dataclass
class AttributeModel:
    """The fitted parameters.

    Attributes:
        attributes: names, in the order of the columns.
        weights: [BUCKETS, a] of the normalised tf-idf n-grams.
        idf: [BUCKETS], zero where a bucket was not seen.
        base: [BUCKETS] weights of the labelled-text scorer.
        line: [4, a]: intercept, weight of the standardised base log-odds, calibration scale and shift.
        base_scale: [2] mean and spread of the base log-odds.
    """

    attributes: tuple[str, ...]
    weights: NDArray[np.float32]
    idf: NDArray[np.float32]
    base: NDArray[np.float32]
    line: Floats
    base_scale: Floats

    def raw(self, texts: Sequence[str]) -> Floats:
        """[n, a] before calibration."""
        found = features(encode(texts))
        inputs = _normalised(_counts(found.bucket, found.row, found.rows), self.idf)
        base = (found.logits(self.base) - self.base_scale[0]) / self.base_scale[1]
        return np.asarray(inputs @ self.weights + self.line[0] + base[:, None] * self.line[1], dtype=np.float64)

    def predict(self, texts: Sequence[str]) -> Floats:
        """[n, a] calibrated scores in [0, 1]."""
        return sigmoid(self.line[2] * self.raw(texts) + self.line[3])


def _counts(bucket: NDArray[np.int64], row: NDArray[np.int64], rows: int) -> sparse.csr_matrix:
    return sparse.csr_matrix((np.ones(len(bucket), dtype=np.float32), (row, bucket)), shape=(rows, BUCKETS))


def _normalised(counts: sparse.csr_matrix, idf: NDArray[np.float32]) -> sparse.csr_matrix:
    """tf-idf rows of length one."""
    weighted = counts.copy()
    weighted.data = counts.data * idf[counts.indices]
    squares = np.bincount(np.repeat(np.arange(counts.shape[0]), np.diff(weighted.indptr)),
                          weights=weighted.data.astype(np.float64) ** 2, minlength=counts.shape[0])
    weighted.data /= np.repeat(np.maximum(np.sqrt(squares), 1e-9), np.diff(weighted.indptr)).astype(np.float32)
    return weighted


def fit_attributes(texts: Sequence[str], scores: Floats, attributes: Sequence[str], base: NgramScorer | None,
                   how: Ridge = Ridge()) -> AttributeModel:
    """Fit weights on texts with stored scores [n, a] in [0, 1]; the calibration is left at the identity's place.

    Args:
        base: the labelled-text scorer whose log-odds help; None does without.
    """
    found = features(encode(texts))
    counts = _counts(found.bucket, found.row, found.rows)
    seen = np.bincount(counts.indices, minlength=BUCKETS)
    idf = np.where(seen > 0, np.log((1 + len(texts)) / np.maximum(seen, 1)), 0).astype(np.float32)
    idf[2**BITS:] *= _WORD_FACTOR
    inputs = _normalised(counts, idf)
    base_weights = base.weights if base else np.zeros(BUCKETS, dtype=np.float32)
    logits = found.logits(base_weights)
    base_scale = np.array([logits.mean(), logits.std() or 1.0])
    extra = np.stack([np.ones(len(texts)), how.base_weight * (logits - base_scale[0]) / base_scale[1]], axis=1)
    mean = scores.mean(axis=0)
    dual = _conjugate_gradients(inputs, extra, scores - mean, how)
    line = np.zeros((4, len(attributes)))
    line[:2] = extra.T @ dual
    line[1] *= how.base_weight
    line[0] += mean
    line[2], line[3] = 4.0, -2.0  # near the identity around one half
    return AttributeModel(tuple(attributes), np.asarray(inputs.T @ dual, dtype=np.float32), idf,
                          np.asarray(base_weights, dtype=np.float32), line, base_scale)


def _conjugate_gradients(inputs: sparse.csr_matrix, extra: Floats, targets: Floats, how: Ridge) -> Floats:
    """[n, a] solution of (X X' + E E' + penalty) dual = targets, columns independent."""
    transposed = inputs.T.tocsr()

    def product(vectors: Floats) -> Floats:
        return np.asarray(inputs @ (transposed @ vectors) + extra @ (extra.T @ vectors) + how.penalty * vectors)

    dual = np.zeros_like(targets)
    rest = targets.copy()
    direction = rest.copy()
    size = (rest**2).sum(axis=0)
    goal = size * how.tolerance**2
    for _ in track(range(how.most_steps), "fitting", how.most_steps, "steps"):
        moved = product(direction)
        step = size / np.maximum((direction * moved).sum(axis=0), 1e-30)
        dual += step * direction
        rest -= step * moved
        before, size = size, (rest**2).sum(axis=0)
        if (size <= goal).all():
            break
        direction = rest + direction * (size / np.maximum(before, 1e-30))
    return dual


def calibrate(model: AttributeModel, texts: Sequence[str], scores: Floats) -> None:
    """Fit scale and shift of each attribute so that sigmoid(scale * raw + shift) meets the scores, on other texts."""
    raw = model.raw(texts)
    for column in range(raw.shape[1]):
        model.line[2:, column] = _soft_platt(raw[:, column], scores[:, column])


def _soft_platt(raw: Floats, targets: Floats, steps: int = 50) -> Floats:
    """Logistic regression on targets in [0, 1] by Newton's method."""
    inputs = np.stack([raw, np.ones_like(raw)], axis=1)
    found = np.array([4.0, -2.0])
    for _ in range(steps):
        chance = sigmoid(inputs @ found)
        curvature = (inputs * (chance * (1 - chance))[:, None]).T @ inputs + 1e-9 * np.eye(2)
        step = np.linalg.solve(curvature, inputs.T @ (chance - targets))
        found = found - step
        if np.abs(step).max() < 1e-9:
            break
    return found


class AttributeScorer(ToxicityScorer):
    """Scores all attributes of an `AttributeModel`."""

    def __init__(self, model: AttributeModel, fingerprint: str, attribute: str = "toxicity") -> None:
        super().__init__("attributes", fingerprint, model.attributes, attribute, batch_size=1024)
        self.model = model

    def score_batch(self, texts: Sequence[str]) -> list[Scores | None]:
        return [dict(zip(self.attributes, row, strict=True)) for row in self.model.predict(texts).tolist()]


def save_attribute_model(model: AttributeModel, path: Path) -> None:
    """Write the parameters as safetensors: only buckets that were seen, weights in float16."""
    kept = np.nonzero(np.abs(model.weights).max(axis=1) > 0)[0]
    save_file({"kept": kept.astype(np.int32), "weights": model.weights[kept].astype(np.float16),
               "idf": model.idf[kept], "base": model.base.astype(np.float16), "line": model.line,
               "base_scale": model.base_scale}, path,
              metadata={"format": _FORMAT, "attributes": json.dumps(model.attributes)})
    path.chmod(0o644)  # safetensors writes for the owner alone


def load_attribute_scorer(path: Path, *, attribute: str = "toxicity") -> AttributeScorer:
    """Read what `train_scorer` wrote: its folder, or the weights file in it.

    Raises:
        DetoxError: the file is missing or something else.
    """
    path = path / WEIGHTS_FILE if path.is_dir() else path
    try:
        with safe_open(path, framework="numpy") as file:
            notes = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        if notes.get("format") != _FORMAT:
            raise ValueError(f"format {notes.get('format')}")
    except Exception as error:  # safetensors raises its own kinds
        raise DetoxError(f"not a trained attribute scorer ({error})", place=str(path),
                         remedy="give the folder that `llm-detox train-scorer` wrote") from None
    names = tuple(json.loads(notes["attributes"]))
    weights = np.zeros((BUCKETS, len(names)), dtype=np.float32)
    idf = np.zeros(BUCKETS, dtype=np.float32)
    weights[tensors["kept"]], idf[tensors["kept"]] = tensors["weights"], tensors["idf"]
    model = AttributeModel(names, weights, idf, tensors["base"].astype(np.float32), tensors["line"],
                           tensors["base_scale"])
    return AttributeScorer(model, f"attributes-{sha256_of(path)[:16]}", attribute)
