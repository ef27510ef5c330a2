"""The E-step of probabilistic PCA with missing entries, summed over rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from pipeline.errors import NonfiniteError
from pipeline.kernels.em import Sums, gather
from pipeline.sources import ROWS

__all__ = ["Expectations"]


@dataclass(frozen=True, eq=False)
class Expectations:
    """Fold to what the next parameters of the model follow from.

    Parameters
    ----------
    loadings : (d, k) array
        W, of the features that have values.
    offset : (d,) array
        What the mean of the model is off the pilot, in weighted, scaled units.
    noise : float
        Variance of the noise.
    pilot, factor : (D,) array
        What is subtracted from the entries of all features, and what they are then multiplied by.
    present : (D,) bool array
        The d features that have values.
    weights : (n,) array, optional
        How much each row counts.
    """

    loadings: np.ndarray
    offset: np.ndarray
    noise: float
    pilot: np.ndarray
    factor: np.ndarray
    present: np.ndarray
    dtype: np.dtype[Any]
    weights: np.ndarray | None = None
    side: int = ROWS
    unfilled: ClassVar[bool] = True
    """Whether it is to see which entries are missing."""

    def block(self, x: np.ndarray, at: tuple[int, int], held: Sums | None, scratch: dict[str, np.ndarray]) -> Sums:
        rows = x if self.present.all() else x[:, self.present]
        if np.isinf(rows).any():
            raise NonfiniteError("Inf among the entries")
        seen = (~np.isnan(rows)).astype(np.float64)
        if rows.dtype.kind == "c":  # whether anything is missing is all that is asked for
            gaps = int((seen == 0).any(axis=1).sum()) + (0 if held is None else held.gaps)
            none = np.zeros(0)
            return Sums(none, none, none, none, 0.0, gaps)
        z = np.where(seen > 0, (rows - self.pilot[self.present]) * self.factor[self.present], 0.0)
        weights = None if self.weights is None else self.weights[at[0] : at[1]]
        found = gather(z, seen, self.loadings, self.offset, self.noise, weights)
        return found if held is None else held + found

    def combine(self, a: Sums, b: Sums) -> Sums:
        return a + b
