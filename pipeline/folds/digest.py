"""Quantiles of a function of the rows in one pass: counts in bins so fine that what they blur does not matter."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.sources import ROWS

if TYPE_CHECKING:
    from pipeline.rowwise import RowFunction

__all__ = ["Digest", "RowDigest"]

_MANY = 1 << 16  # distinct numbers that are kept as they are
_SHIFT = 52 - 13  # beyond: a bin is all numbers that share their exponent and 13 bits, 1.2e-4 of the value


@dataclass(frozen=True)
class Digest:
    """Weights (m,) of the bins that hold numbers, by their keys (m,), and the sums of the first three powers.

    Keys are the numbers' bits without the last `shift`: their order is that of the numbers, as none is negative.
    Few numbers are kept whole (shift 0).
    """

    keys: np.ndarray
    weights: np.ndarray
    powers: np.ndarray
    shift: int = 0

    @classmethod
    def of(cls, values: np.ndarray, weights: np.ndarray | None = None) -> Digest:
        """Of numbers (n,) >= 0, each counted as often as its weight says."""
        values = np.abs(np.asarray(values, dtype=np.float64))
        w = np.ones(values.size) if weights is None else weights
        powers = np.array([w @ values, w @ values**2, w @ values**3])
        return cls(values.view(np.int64), w, powers)._counted()

    def __add__(self, other: Digest) -> Digest:
        shift = max(self.shift, other.shift)
        keys = np.concatenate([d.keys >> (shift - d.shift) for d in (self, other)])
        weights = np.concatenate([self.weights, other.weights])
        return Digest(keys, weights, self.powers + other.powers, shift)._counted()

    def _counted(self) -> Digest:
        """Each key once, and coarser ones where there are many."""
        keys, where = np.unique(self.keys, return_inverse=True)
        found = replace(self, keys=keys, weights=np.bincount(where, self.weights, keys.size))
        if found.shift == 0 and keys.size > _MANY:
            return replace(found, keys=keys >> _SHIFT, shift=_SHIFT)._counted()
        return found

    @property
    def n(self) -> float:
        """How many numbers, or the sum of their weights."""
        return float(self.weights.sum())

    def quantile(self, q: float) -> float:
        """The q-quantile, between neighbours as `numpy.quantile`: exact for few numbers, else to 1.2e-4 of its value.

        >>> float(Digest.of(np.arange(1001.0)).quantile(0.99))
        990.0
        """
        below = np.concatenate([[0.0], np.cumsum(self.weights)])
        rank = q * max(self.n - 1, 0.0)
        low, high = (self._ranked(below, r) for r in (np.floor(rank), np.ceil(rank)))
        return low + (high - low) * (rank - np.floor(rank))

    def _ranked(self, below: np.ndarray, rank: float) -> float:
        """The number of a rank from 0, its place within its bin being that of even spacing."""
        i = min(int(np.searchsorted(below, rank, side="right")) - 1, self.keys.size - 1)
        low, high = (np.array([self.keys[i], self.keys[i] + 1]) << self.shift).view(np.float64)
        return float(low + (high - low) * (rank - below[i] + 0.5) / self.weights[i] if self.shift else low)


@dataclass(frozen=True, eq=False)
class RowDigest:
    """Fold to the digest of a function of the rows that gives one number >= 0 a row; rows may have weights (n,)."""

    function: RowFunction
    dtype: np.dtype[Any]
    weights: np.ndarray | None = None
    side: int = ROWS

    def block(self, x: np.ndarray, at: tuple[int, int], held: Digest | None, scratch: dict[str, Any]) -> Digest:
        weights = None if self.weights is None else self.weights[at[0] : at[1]]
        found = Digest.of(self.function.checked(x), weights)
        return found if held is None else held + found

    def combine(self, a: Digest, b: Digest) -> Digest:
        return a + b
