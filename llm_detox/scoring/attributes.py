"""A local stand-in for Perspective: several attributes at once, regressed on stored scores.

Linear ridge regression, then a calibration for each attribute. The inputs are tf-idf n-grams; what the labelled-text
scorer (`ngram.py`) finds in a text; and what the text is about (`text_vectors.py`). The last two know words that the
stored scores do not.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file
from scipy import sparse

from llm_detox.data.sources import fetch
from llm_detox.errors import DetoxError
from llm_detox.progress import track
from llm_detox.recipe.scorers import NOTE, WEIGHTS_FILE
from llm_detox.runs.folders import digest_of, sha256_of
from llm_detox.scoring.base import Scores, ToxicityScorer
from llm_detox.scoring.features import (
    BITS,
    BUCKETS,
    EVIDENCE,
    Encoded,
    Features,
    Floats,
    encode,
    evidence,
    features,
    platt,
    sigmoid,
)
from llm_detox.scoring.ngram import NgramScorer
from llm_detox.scoring.text_vectors import Landmarks, PieceEncoder, SentenceEncoder, TextEncoder, landmarks

TOKENIZER_FILE = "tokenizer.json"
_WORD_FACTOR = 1.5  # words and pairs of words against character n-grams
_FORMAT = "llm-detox-attributes-2"
_AT_ONCE = 4096  # texts
_NEAR_IDENTITY = (4.0, -2.0)  # scale and shift, around one half


@dataclass(frozen=True)
class Ridge:
    """How the weights are fitted.

    Attributes:
        evidence_weight, meaning_weight: of these inputs against the n-grams, which have length one.
        landmarks, gamma: see `llm_detox.scoring.text_vectors.landmarks`.
    """

    penalty: float = 0.05
    evidence_weight: float = 0.5
    meaning_weight: float = 1.0
    landmarks: int = 1024
    gamma: float = 2.0
    tolerance: float = 1e-4


@dataclass
class AttributeModel:
    """The fitted parameters.

    Attributes:
        attributes: names, in the order of the columns.
        weights: [BUCKETS, a] of the normalised tf-idf n-grams.
        dense_weights: [1 + EVIDENCE + m, a] of the intercept, the evidence and the closeness to landmarks.
        idf: [BUCKETS], zero where a bucket was not seen.
        base: [BUCKETS] weights of the labelled-text scorer; zero without one.
        evidence_scale: [2, EVIDENCE] what is taken off the evidence, and what it is then multiplied with.
        encoder, landmarks: what the texts are about; None does without.
        calibration: [2, a] scale and shift.
        base_source: the labelled text that `base` was fitted on; "" without one.
        languages: those of the texts; empty where they could not be told.
    """

    attributes: tuple[str, ...]
    weights: NDArray[np.float32]
    dense_weights: Floats
    idf: NDArray[np.float32]
    base: NDArray[np.float32]
    evidence_scale: Floats
    encoder: TextEncoder | None = None
    landmarks: Landmarks | None = None
    calibration: Floats = field(default_factory=lambda: np.array(_NEAR_IDENTITY)[:, None])
    base_source: str = ""
    languages: tuple[str, ...] = ()

    def raw(self, texts: Sequence[str]) -> Floats:
        """[n, a] before calibration."""
        parts = [self._raw(texts[first:first + _AT_ONCE]) for first in range(0, len(texts), _AT_ONCE)]
        return np.concatenate(parts) if parts else np.zeros((0, len(self.attributes)))

    def _raw(self, texts: Sequence[str]) -> Floats:
        encoded = encode(texts)
        found = features(encoded)
        inputs = _normalised(_counts(found), self.idf)
        return np.asarray(inputs @ self.weights + self._dense(texts, encoded, found) @ self.dense_weights,
                          dtype=np.float64)

    def _dense(self, texts: Sequence[str], encoded: Encoded, found: Features) -> NDArray[np.float32]:
        off, factor = self.evidence_scale
        columns = [np.ones((len(texts), 1)), (evidence(encoded, found, self.base) - off) * factor]
        if self.encoder and self.landmarks:
            columns.append(self.landmarks.of(self.encoder.encode(texts)))
        return np.concatenate(columns, axis=1, dtype=np.float32)

    def predict(self, texts: Sequence[str]) -> Floats:
        """[n, a] calibrated scores in [0, 1]."""
        return sigmoid(self.calibration[0] * self.raw(texts) + self.calibration[1])


def _counts(found: Features) -> sparse.csr_matrix:
    return sparse.csr_matrix((np.ones(len(found.bucket), dtype=np.float32), (found.row, found.bucket)),
                             shape=(found.rows, BUCKETS))


def _normalised(counts: sparse.csr_matrix, idf: NDArray[np.float32]) -> sparse.csr_matrix:
    """tf-idf rows of length one."""
    weighted = counts.copy()
    weighted.data = counts.data * idf[counts.indices]
    squares = np.bincount(np.repeat(np.arange(counts.shape[0]), np.diff(weighted.indptr)),
                          weights=weighted.data.astype(np.float64) ** 2, minlength=counts.shape[0])
    weighted.data /= np.repeat(np.maximum(np.sqrt(squares), 1e-9), np.diff(weighted.indptr)).astype(np.float32)
    return weighted


def fit_attributes(texts: Sequence[str], scores: Floats, attributes: Sequence[str], base: NgramScorer | None,
                   encoder: TextEncoder | None = None, ridge: Ridge = Ridge()) -> AttributeModel:
    """Fit weights on texts with stored scores [n, a] in [0, 1]; the calibration is left at the identity's place.

    Args:
        base: the labelled-text scorer whose findings help; None does without.
        encoder: of what the texts are about; None does without.
        ridge: how the weights are fitted.
    """
    encoded = encode(texts)
    found = features(encoded)
    counts = _counts(found)
    seen = np.bincount(counts.indices, minlength=BUCKETS)
    idf = np.where(seen > 0, np.log((1 + len(texts)) / np.maximum(seen, 1)), 0).astype(np.float32)
    idf[2**BITS:] *= _WORD_FACTOR
    base_weights = np.asarray(base.weights if base else np.zeros(BUCKETS), dtype=np.float32)
    says = evidence(encoded, found, base_weights)
    spread = says.std(axis=0)
    scale = np.stack([says.mean(axis=0), np.where(spread > 0, ridge.evidence_weight / np.maximum(spread, 1e-12), 0)])
    near = landmarks(encoder.encode(texts), count=ridge.landmarks, gamma=ridge.gamma) if encoder else None
    model = AttributeModel(tuple(attributes), np.zeros((BUCKETS, len(attributes)), dtype=np.float32),
                           np.zeros((0, 0)), idf, base_weights, scale, encoder, near)
    inputs, dense = _normalised(counts, idf), model._dense(texts, encoded, found)
    dense[:, 1 + EVIDENCE:] *= ridge.meaning_weight
    mean = scores.mean(axis=0)
    dual = solve(inputs, dense, scores - mean, penalty=ridge.penalty, tolerance=ridge.tolerance)
    model.weights = np.asarray(inputs.T @ dual, dtype=np.float32)
    model.dense_weights = np.asarray(dense.T @ dual, dtype=np.float64)
    model.dense_weights[1 + EVIDENCE:] *= ridge.meaning_weight
    model.dense_weights[0] += mean
    return model


def calibrate(model: AttributeModel, raw: Floats, scores: Floats) -> None:
    """Fit scale and shift of each attribute so that sigmoid(scale * raw + shift) meets the scores [n, a].

    Args:
        raw: [n, a] of texts that the weights were not fitted on.
    """
    model.calibration = np.stack([platt(raw[:, column], scores[:, column], start=_NEAR_IDENTITY, ridge=1e-9)
                                  for column in range(raw.shape[1])], 1)


class AttributeScorer(ToxicityScorer):
    """Scores all attributes of an `AttributeModel`."""

    def __init__(self, model: AttributeModel, fingerprint: str, attribute: str = "toxicity") -> None:
        super().__init__("attributes", fingerprint, model.attributes, attribute, batch_size=1024,
                         version=_FORMAT.rpartition("-")[2])
        self.model, self.languages = model, model.languages

    def score_batch(self, texts: Sequence[str]) -> list[Scores | None]:
        return [dict(zip(self.attributes, row, strict=True)) for row in self.model.predict(texts).tolist()]


def save_attribute_model(model: AttributeModel, folder: Path) -> None:
    """Write the parameters as safetensors: only buckets that were seen, in float16 where digits do not matter."""
    kept = np.nonzero(np.abs(model.weights).max(axis=1) > 0)[0]
    tensors: dict[str, NDArray[Any]] = {
        "kept": kept.astype(np.int32), "weights": model.weights[kept].astype(np.float16), "idf": model.idf[kept],
        "base": model.base.astype(np.float16), "dense_weights": model.dense_weights,
        "evidence_scale": model.evidence_scale, "calibration": model.calibration}
    notes = {"format": _FORMAT, "attributes": json.dumps(model.attributes), NOTE: model.base_source,
             "languages": json.dumps(model.languages)}
    if near := model.landmarks:
        tensors |= {"landmarks.centre": near.centre, "landmarks.points": near.points.astype(np.float16),
                    "landmarks.whiten": near.whiten, "landmarks.gamma": np.array([near.gamma])}
    if isinstance(model.encoder, PieceEncoder):
        tensors |= {"pieces": model.encoder.vectors.astype(np.float16), "pieces.idf": model.encoder.idf}
        (folder / TOKENIZER_FILE).write_text(model.encoder.tokenizer, "utf-8")
    elif isinstance(model.encoder, SentenceEncoder):
        notes["encoder"] = model.encoder.source
    path = folder / WEIGHTS_FILE
    save_file(tensors, path, metadata=notes)
    path.chmod(0o644)  # safetensors writes for the owner alone


def fetch_attribute_scorer(source: str | None, *, attribute: str = "toxicity") -> AttributeScorer:
    """The scorer of a source (see `llm_detox.data.sources`).

    Raises:
        DetoxError: no source is named, or it cannot be had.
    """
    if source is None:
        raise DetoxError("the scorer kind `attributes` needs a source", place="scoring",
                         remedy="name the folder that `llm-detox train-scorer` wrote, or its s3:// address")
    return load_attribute_scorer(fetch(source, kind="model"), attribute=attribute)


def load_attribute_scorer(path: Path, *, attribute: str = "toxicity") -> AttributeScorer:
    """Read what `train_scorer` wrote: its folder, or the weights file in it.

    Raises:
        DetoxError: a file is missing or something else.
    """
    path = path / WEIGHTS_FILE if path.is_dir() else path
    try:
        with safe_open(path, framework="numpy") as file:
            notes = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        if notes.get("format") != _FORMAT:
            raise ValueError(f"format {notes.get('format')}")
        tokenizer = (path.parent / TOKENIZER_FILE).read_text("utf-8") if "pieces" in tensors else ""
        model = _model(tensors, notes, tokenizer)
    except DetoxError:  # of its encoder
        raise
    except Exception as error:  # safetensors raises its own kinds
        raise DetoxError(f"not a trained attribute scorer ({type(error).__name__}: {error})", place=str(path),
                         remedy="give the folder that `llm-detox train-scorer` wrote") from None
    return AttributeScorer(model, f"attributes-{digest_of([sha256_of(path), tokenizer])[:16]}", attribute)


def _model(tensors: dict[str, NDArray[Any]], notes: dict[str, str], tokenizer: str) -> AttributeModel:
    names = tuple(json.loads(notes["attributes"]))
    weights, idf = np.zeros((BUCKETS, len(names)), dtype=np.float32), np.zeros(BUCKETS, dtype=np.float32)
    weights[tensors["kept"]], idf[tensors["kept"]] = tensors["weights"], tensors["idf"]
    return AttributeModel(names, weights, tensors["dense_weights"], idf, tensors["base"].astype(np.float32),
                          tensors["evidence_scale"], _encoder(tensors, notes, tokenizer), _landmarks(tensors),
                          tensors["calibration"], languages=tuple(json.loads(notes.get("languages", "[]"))))


def _encoder(tensors: dict[str, NDArray[Any]], notes: dict[str, str], tokenizer: str) -> TextEncoder | None:
    if "pieces" in tensors:
        return PieceEncoder(tokenizer, tensors["pieces"].astype(np.float32), tensors["pieces.idf"])
    return SentenceEncoder(notes["encoder"]) if "encoder" in notes else None


def _landmarks(tensors: dict[str, NDArray[Any]]) -> Landmarks | None:
    if "landmarks.points" not in tensors:
        return None
    return Landmarks(tensors["landmarks.centre"], tensors["landmarks.points"].astype(np.float32),
                     tensors["landmarks.whiten"], float(tensors["landmarks.gamma"][0]))


def solve(inputs: sparse.csr_matrix, extra: NDArray[np.float32], targets: Floats, *, penalty: float,
          tolerance: float = 1e-4, most_steps: int = 400) -> Floats:
    """The dual weights [n, a]; the weights are `inputs.T @ dual` and `extra.T @ dual`.

    Args:
        inputs: [n, f] sparse, and
        extra: [n, m] dense inputs of the same texts.
        targets: [n, a]; the columns are independent.
        penalty: on the squared weights.

    Returns:
        The solution of (X X' + E E' + penalty) dual = targets, to a residual of `tolerance` of the targets' size.
    """
    transposed = inputs.T.tocsr()

    def product(vectors: Floats) -> Floats:
        dense = extra @ (extra.T @ vectors.astype(np.float32))
        return np.asarray(inputs @ (transposed @ vectors) + dense + penalty * vectors, dtype=np.float64)

    dual = np.zeros_like(targets)
    rest = targets.copy()
    direction = rest.copy()
    size = (rest**2).sum(axis=0)
    goal = size * tolerance**2
    for _ in track(range(most_steps), "fitting", most_steps, "steps"):
        moved = product(direction)
        step = size / np.maximum((direction * moved).sum(axis=0), 1e-30)
        dual += step * direction
        rest -= step * moved
        before, size = size, (rest**2).sum(axis=0)
        if (size <= goal).all():
            break
        direction = rest + direction * (size / np.maximum(before, 1e-30))
    return dual
