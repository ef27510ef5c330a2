"""`About`: how much rows weigh and where their mean lies, from a pilot, so that nothing large cancels."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from pipeline.errors import NonfiniteError
from pipeline.folds.rows import Rows

__all__ = ["About"]


@dataclass(frozen=True)
class About:
    """Weight n of some rows, and their weighted sums (d,) about a pilot (d,); features may be absent (d,).

    The mean is kept as pilot + sums / n, as two large means are not to be rounded before they are compared.
    """

    n: float
    pilot: np.ndarray
    absent: np.ndarray
    sums: np.ndarray

    @classmethod
    def pilot_of(cls, rows: Rows) -> About:
        """Of no rows yet, about the pilot of those that come."""
        return cls(0.0, rows.pilot, rows.absent, np.zeros(len(rows.pilot)))

    @property
    def shift(self) -> np.ndarray:
        """(d,) from the pilot to the weighted mean."""
        return self.sums / self.n if self.n else np.zeros_like(self.sums)

    @property
    def mean(self) -> np.ndarray:
        """(d,) weighted mean."""
        return self.pilot + self.shift

    def plus(self, rows: Rows) -> About:
        """With a block more of the same pilot."""
        return replace(self, n=self.n + rows.weight, sums=self.sums + rows.sums)

    def joined(self, other: About) -> tuple[About, np.ndarray]:
        """Both, about the first pilot, and g = sqrt(n1 n2 / n) (mu1 - mu2).

        With it scatters about the two means give that about the common one: C = C1 + C2 + g g^T (Chan, Golub and
        LeVeque 1983). Raises NonfiniteError where they miss different features.
        """
        if not np.array_equal(self.absent, other.absent):
            raise NonfiniteError("a feature is NaN in some samples only")
        n, apart = self.n + other.n, self.pilot - other.pilot
        gap = np.sqrt(self.n * other.n / n if n else 0.0) * (apart + (self.shift - other.shift))
        return replace(self, n=n, sums=self.sums + other.sums - other.n * apart), gap
