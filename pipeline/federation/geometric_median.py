"""`geometric_median`: the subspace of least weighted sum of projector distances, which up to half may not move far."""

from __future__ import annotations

import numpy as np

from pipeline.federation.members import Agreement, Members
from pipeline.kernels.averages import compressed, distances, irls, leading_rows

__all__ = ["geometric_median"]


def geometric_median(members: Members, k: int) -> Agreement:
    """Minimises sum_j w_j ||P_j - P||_F by reweighted projector means. Not associative: medians of medians differ."""
    span, bases = compressed(members.bases)
    stacked, owner = np.concatenate(bases), np.repeat(np.arange(len(bases)), [len(v) for v in bases])

    def average(pull: np.ndarray, center: np.ndarray) -> np.ndarray:
        return leading_rows(np.sqrt(pull[owner])[:, None] * stacked, k)

    start = average(members.weights, stacked)
    center, trust, steps, rests = irls(start, average, lambda c: distances(bases, c), members.weights)
    return Agreement(center @ span, trust, steps, rests)
