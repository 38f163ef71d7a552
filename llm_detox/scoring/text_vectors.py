"""What a text is about, as a vector: the mean of its word pieces' vectors, or a sentence encoder's reading of it.

Word pieces take tens of thousands of texts a second and need no torch; the encoder takes some hundred.
Closeness to landmarks (Williams and Seeger 2001, the Nystroem method) lets a linear model of such vectors see their
Gaussian kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from tokenizers import Tokenizer

Vectors = NDArray[np.float32]
_JITTER = 1e-3  # of the landmarks' kernel, so that equal texts among them do no harm


class TextEncoder(Protocol):
    """Gives texts their vectors."""

    def encode(self, texts: Sequence[str]) -> Vectors:
        """[n, d]."""


class PieceEncoder:
    """The mean of the vectors of a text's word pieces, rare ones weighing more.

    Args:
        tokenizer: as JSON.
        vectors: [v, d] of the pieces.
        idf: [v] their weights; all alike until `fit`.
    """

    def __init__(self, tokenizer: str, vectors: Vectors, idf: Vectors | None = None) -> None:
        self.tokenizer, self.vectors = tokenizer, vectors
        self.idf = np.ones(len(vectors), dtype=np.float32) if idf is None else idf
        self._tokenizer = Tokenizer.from_str(tokenizer)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def fit(self, texts: Sequence[str]) -> PieceEncoder:
        """Weigh the pieces by how rare they are in these texts."""
        seen = np.diff(self._counts(texts).tocsc().indptr)
        self.idf = np.log((1 + len(texts)) / np.maximum(seen, 1)).astype(np.float32)
        return self

    def encode(self, texts: Sequence[str]) -> Vectors:
        counts = self._counts(texts)
        counts.data = counts.data * self.idf[counts.indices]
        sums = np.asarray(counts.sum(axis=1)).ravel()
        return np.asarray(counts @ self.vectors / np.maximum(sums, 1e-9)[:, None], dtype=np.float32)

    def _counts(self, texts: Sequence[str]) -> sparse.csr_matrix:
        encoded = [one.ids for one in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]
        rows = np.repeat(np.arange(len(encoded)), [len(ids) for ids in encoded])
        pieces = np.fromiter((piece for ids in encoded for piece in ids), dtype=np.int64, count=len(rows))
        counts = sparse.csr_matrix((np.ones(len(rows), dtype=np.float32), (rows, pieces)),
                                  shape=(len(encoded), len(self.vectors)))
        counts.sum_duplicates()
        return counts


class SentenceEncoder:
    """The embeddings of a sentence encoder; see `llm_detox.scoring.similarity`."""

    def __init__(self, source: str) -> None:
        from llm_detox.scoring.similarity import SentenceSimilarity  # loads torch, which word pieces do without

        self.source = source
        self._encoder = SentenceSimilarity(source)

    def encode(self, texts: Sequence[str]) -> Vectors:
        return np.asarray(self._encoder.embed(texts).numpy(), dtype=np.float32)

    def pieces(self) -> PieceEncoder:
        """The encoder of the word pieces alone, to be fitted."""
        tokenizer, vectors = self._encoder.word_pieces()
        return PieceEncoder(tokenizer, np.asarray(vectors.float().numpy(), dtype=np.float32))


@dataclass
class Landmarks:
    """Features of vectors x: their closeness exp(gamma (x.l - 1)) to landmarks l, all centred and of length one.

    Attributes:
        centre: [d], of the vectors.
        points: [m, d] the landmarks.
        whiten: [m, m] makes the features' products the kernel's own.
    """

    centre: Vectors
    points: Vectors
    whiten: Vectors
    gamma: float

    def of(self, vectors: Vectors) -> Vectors:
        """[n, m]."""
        near = _kernel(_unit(vectors - self.centre), self.points, self.gamma)
        return np.asarray(near @ self.whiten, dtype=np.float32)


def landmarks(vectors: Vectors, *, count: int, gamma: float) -> Landmarks:
    """Landmarks for vectors like these [n, d]: some of them, the same ones for the same vectors."""
    centre = vectors.mean(axis=0)
    chosen = np.random.Generator(np.random.PCG64(2001)).permutation(len(vectors))[:count]
    points = _unit(vectors[chosen] - centre)
    kernel = _kernel(points, points, gamma).astype(np.float64)
    values, directions = np.linalg.eigh(kernel + _JITTER * np.eye(len(points)))
    whiten = (directions / np.sqrt(values)) @ directions.T
    return Landmarks(centre, points, whiten.astype(np.float32), gamma)


def _unit(vectors: Vectors) -> Vectors:
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9), dtype=np.float32)


def _kernel(left: Vectors, right: Vectors, gamma: float) -> Vectors:
    return np.asarray(np.exp(gamma * (left @ right.T - 1)), dtype=np.float32)
