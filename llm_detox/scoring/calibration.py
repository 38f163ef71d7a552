"""From a linear scorer's sums to probabilities, and how good these are: Platt scaling, ranking, calibration error."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from llm_detox.scoring.features import Floats

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
