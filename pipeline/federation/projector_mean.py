"""`projector_mean`: leading eigenvectors of the weighted mean of projectors (Fan, Wang, Wang and Zhu 2019)."""

from __future__ import annotations

import numpy as np

from pipeline.federation.members import Agreement, Members
from pipeline.kernels.averages import leading_rows

__all__ = ["projector_mean"]


def projector_mean(members: Members, k: int) -> Agreement:
    """Biased in second order only; means are linear, so that it is associative until it is cut to k."""
    rows = np.concatenate([np.sqrt(w) * v for w, v in zip(members.weights, members.bases, strict=True)])
    return Agreement(leading_rows(rows, k), members.weights)
