"""What linear scorers of text are made of: hashed n-grams, and the way from their sums to probabilities.

Word and character n-grams of many texts at once, in numpy: tens of thousands of texts a second. Platt scaling makes
probabilities of sums; ranking and calibration error say how good these are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

BITS = 19  # for each family: 2^19 buckets of characters, 2^19 of words
BUCKETS = 2 * 2**BITS
CHAR_LENGTHS = (2, 3, 4, 5)
_LONGEST_WORD = 48  # bytes; the rest of a longer word does not enter its hash
_SPACE = 32

_rng = np.random.Generator(np.random.PCG64(20200924))
_CHAR_FACTORS = _rng.integers(1, 2**63, size=max(CHAR_LENGTHS), dtype=np.uint64) | np.uint64(1)
_WORD_FACTORS = _rng.integers(1, 2**63, size=_LONGEST_WORD, dtype=np.uint64) | np.uint64(1)
_LENGTH_SALTS = _rng.integers(1, 2**63, size=max(CHAR_LENGTHS) + 1, dtype=np.uint64)
_PAIR_FACTOR = np.uint64(0x9E3779B97F4A7C15)

_WORD_BYTE = np.zeros(256, dtype=bool)
_WORD_BYTE[list(b"0123456789abcdefghijklmnopqrstuvwxyz'*$@")] = True
_WORD_BYTE[128:] = True  # letters past ASCII


@dataclass
class Features:
    """The n-gram occurrences of a batch of texts, flat.

    Attributes:
        bucket: [m] weight index of each occurrence.
        row: [m] the text it belongs to.
        value: [m] its weight in the text: 1 / sqrt(occurrences of its family in the text).
        start, end: [m] the bytes of `Encoded.data` that it covers.
        rows: number of texts.
    """

    bucket: Ints
    row: Ints
    value: Floats
    start: Ints
    end: Ints
    rows: int

    def logits(self, weights: NDArray[np.float32]) -> Floats:
        """[rows] weighted sums."""
        sums = np.bincount(self.row, weights=weights[self.bucket] * self.value, minlength=self.rows)
        return np.asarray(sums, dtype=np.float64)


@dataclass
class Encoded:
    """Normalised texts, end to end: ` word word ` each, as bytes, with the row of every byte."""

    data: NDArray[np.uint8]
    row: Ints
    rows: int


def encode(texts: Sequence[str]) -> Encoded:
    """Lower-case the texts, reduce white space to single blanks, put a blank at both ends."""
    normal = [" ".join(text.lower().split()) for text in texts]
    pieces = [(f" {text} " if text else " ").encode("utf-8", "replace") for text in normal]
    data = np.frombuffer(b"".join(pieces), dtype=np.uint8)
    row = np.repeat(np.arange(len(pieces)), [len(piece) for piece in pieces])
    return Encoded(data, row, len(pieces))


def features(encoded: Encoded) -> Features:
    """All character n-grams of 2 to 5 bytes, all words and pairs of neighbouring words."""
    families = [_chars(encoded), _words(encoded)]
    bucket, row, start, end = (np.concatenate([family[part] for family in families]) for part in range(4))
    value = np.concatenate([
        (1 / np.sqrt(np.maximum(np.bincount(family[1], minlength=encoded.rows), 1)))[family[1]] for family in families])
    return Features(bucket, row, value, start, end, encoded.rows)


def _chars(encoded: Encoded) -> tuple[Ints, Ints, Ints, Ints]:
    data = encoded.data.astype(np.uint64)
    parts = []
    rolling = data * _CHAR_FACTORS[0]
    for length in range(2, max(CHAR_LENGTHS) + 1):
        count = len(data) - length + 1
        if count <= 0:
            break
        rolling = rolling[:count] + data[length - 1:] * _CHAR_FACTORS[length - 1]
        start = np.nonzero(encoded.row[:count] == encoded.row[length - 1:])[0]
        bucket = _finish(rolling[start] + _LENGTH_SALTS[length])
        parts.append((bucket, encoded.row[start], start, start + length))
    return _joined(parts)


def _words(encoded: Encoded) -> tuple[Ints, Ints, Ints, Ints]:
    inside = _WORD_BYTE[encoded.data]
    edges = np.diff(np.concatenate(([0], inside.view(np.int8), [0])))
    start, end = np.nonzero(edges == 1)[0], np.nonzero(edges == -1)[0]  # blanks at both ends keep texts apart
    if not len(start):
        return _joined([])
    positions = np.nonzero(inside)[0]
    number = np.repeat(np.arange(len(start)), end - start)
    depth = np.minimum(positions - start[number], _LONGEST_WORD - 1)
    hashed = np.add.reduceat(encoded.data[positions].astype(np.uint64) * _WORD_FACTORS[depth],
                             np.concatenate(([0], np.cumsum(end - start)[:-1])))
    row = encoded.row[start]
    offset = 2**BITS
    singles = (_finish(hashed) + offset, row, start, end)
    pair = np.nonzero(row[:-1] == row[1:])[0]
    pairs = (_finish(hashed[pair] * _PAIR_FACTOR + hashed[pair + 1]) + offset, row[pair], start[pair], end[pair + 1])
    return _joined([singles, pairs])


def _finish(hashed: NDArray[np.uint64]) -> Ints:
    hashed = (hashed ^ (hashed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    return (hashed >> np.uint64(64 - BITS)).astype(np.int64)


def _joined(parts: list[tuple[Ints, Ints, Ints, Ints]]) -> tuple[Ints, Ints, Ints, Ints]:
    if not parts:
        empty = np.zeros(0, dtype=np.int64)
        return empty, empty, empty, empty
    bucket, row, start, end = (np.concatenate([part[index] for part in parts]) for index in range(4))
    return bucket, row, start, end


def word_shares(encoded: Encoded, found: Features, contributions: Floats) -> list[list[float]]:
    """Share each occurrence's contribution out over the white-space words of its text.

    Every byte that an occurrence covers takes an equal part; a blank's part goes to the word before it,
    the first blank's to the first word. So the words' sums add up to the text's whole.

    Args:
        contributions: [m], one for each occurrence.

    Returns:
        For each text, one number for each white-space word.
    """
    sums, owner = _word_sums(encoded, found, contributions)
    shares: list[list[float]] = [[] for _ in range(encoded.rows)]
    for row, value in zip(owner.tolist(), sums.tolist(), strict=False):
        shares[row].append(value)
    return shares


def _word_sums(encoded: Encoded, found: Features, contributions: Floats) -> tuple[Floats, Ints]:
    """What each white-space word of all texts takes of the contributions, and the text that it belongs to."""
    per_byte = contributions / np.maximum(found.end - found.start, 1)
    steps = np.bincount(found.start, weights=per_byte, minlength=len(encoded.data) + 1)
    steps -= np.bincount(found.end, weights=per_byte, minlength=len(encoded.data) + 1)
    per_position = np.cumsum(steps[:-1])
    blank = encoded.data == _SPACE
    first = np.diff(encoded.row, prepend=-1) > 0
    begins = np.concatenate(([False], blank[:-1])) & ~blank  # first byte of a white-space word
    word = np.cumsum(begins) - 1
    word[first] = np.minimum(word[first] + 1, word[-1])  # a text's first blank belongs to its first word
    sums = np.bincount(np.maximum(word, 0), weights=per_position, minlength=int(begins.sum()))
    return np.asarray(sums, dtype=np.float64), encoded.row[begins]


EVIDENCE = 5


def evidence(encoded: Encoded, found: Features, weights: NDArray[np.float32]) -> Floats:
    """What a linear scorer's weights say of each text, in parts that mean more apart than summed up: [rows, 5].

    The whole, its words and its characters; the highest of its white-space words, and the sum of those over zero (one
    insult in a long harmless text hardly moves the whole).
    """
    contributions = np.asarray(weights[found.bucket] * found.value, dtype=np.float64)
    words = found.bucket >= 2**BITS
    sums, owner = _word_sums(encoded, found, contributions)
    columns = np.zeros((EVIDENCE, encoded.rows))
    columns[1] = np.bincount(found.row[words], weights=contributions[words], minlength=encoded.rows)
    columns[2] = np.bincount(found.row[~words], weights=contributions[~words], minlength=encoded.rows)
    columns[0] = columns[1] + columns[2]
    columns[3] = -np.inf
    np.maximum.at(columns[3], owner, sums)
    columns[3, np.isinf(columns[3])] = 0.0  # a text without any word
    columns[4] = np.bincount(owner, weights=np.maximum(sums, 0), minlength=encoded.rows)
    return columns.T


_STEPS, _TOLERANCE = 50, 1e-9


def sigmoid(logits: Floats) -> Floats:
    """Elementwise, without overflow."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * logits)), dtype=np.float64)


def platt(logits: Floats, targets: Floats, *, start: tuple[float, float] = (1.0, 0.0), ridge: float = 1e-6) -> Floats:
    """Scale and shift that make sigmoid(scale * logits + shift) a probability (Platt 1999), by Newton's method.

    Args:
        logits: [n] of texts that the scorer was not fitted on.
        targets: [n] in [0, 1]: stored scores, or labels as `platt_targets` gives them.
        start: scale and shift to begin with.
        ridge: added to the curvature, where all logits may be alike; it does not move the optimum.

    Returns:
        [2] scale and shift.
    """
    inputs = np.stack([logits, np.ones_like(logits)], axis=1)
    weights = np.array(start)
    for _ in range(_STEPS):
        chance = sigmoid(inputs @ weights)
        curvature = (inputs * (chance * (1 - chance))[:, None]).T @ inputs + ridge * np.eye(2)
        step = np.linalg.solve(curvature, inputs.T @ (chance - targets))
        weights = weights - step
        if np.abs(step).max() < _TOLERANCE:
            break
    return weights


def platt_targets(labels: NDArray[np.bool_]) -> Floats:
    """[n] what Platt fits on in place of 0 and 1, so that separable classes do not lead to certainty."""
    positive, negative = labels.sum(), (~labels).sum()
    return np.asarray(np.where(labels, (positive + 1) / (positive + 2), 1 / (negative + 2)), dtype=np.float64)


def area_under_roc(scores: Floats, labels: NDArray[np.bool_]) -> float:
    """Chance that a positive scores over a negative; ties count half (Mann-Whitney). NaN where a class is missing."""
    from scipy import stats  # takes as long to import as a small scorer to fit

    positive = int(labels.sum())
    negative = len(labels) - positive
    if not positive or not negative:
        return float("nan")
    ranks = stats.rankdata(scores)
    return float((ranks[labels].sum() - positive * (positive + 1) / 2) / (positive * negative))


def calibration_error(predicted: Floats, stored: Floats, bins: int = 10) -> float:
    """Expected calibration error: mean distance between predicted and stored means in bins of equal count."""
    order: list[NDArray[np.int64]] = np.array_split(np.argsort(predicted, kind="stable"), bins)
    return float(sum(len(part) * abs(predicted[part].mean() - stored[part].mean()) for part in order if len(part))
                 / len(predicted))
