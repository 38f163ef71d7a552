"""Ridge regression in its dual form by conjugate gradients (Hestenes and Stiefel 1952), all targets at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from llm_detox.progress import track
from llm_detox.scoring.features import Floats


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
