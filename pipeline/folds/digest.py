"""Quantiles of a function of the rows in one pass: counts in bins so fine that what they blur does not matter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.sources import ROWS

if TYPE_CHECKING:
    from pipeline.rowwise import RowFunction

__all__ = ["Digest", "RowDigest"]

_SHIFT = np.int64(52 - 13)  # a bin is all numbers that share their exponent and 13 bits: 1.2e-4 of the value


@dataclass(frozen=True)
class Digest:
    """Weights (m,) of the bins that hold numbers, by their keys (m,), and the sums of the first three powers.

    Keys are the leading bits of the numbers, which are not negative, so that their order is that of the numbers.
    """

    keys: np.ndarray
    weights: np.ndarray
    powers: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray, weights: np.ndarray | None = None) -> Digest:
        """Of numbers (n,) >= 0, each counted as often as its weight says."""
        values = np.abs(np.asarray(values, dtype=np.float64))
        w = np.ones(values.size) if weights is None else weights
        keys, where = np.unique(values.view(np.int64) >> _SHIFT, return_inverse=True)
        powers = np.array([w @ values, w @ values**2, w @ values**3])
        return cls(keys, np.bincount(where, w, keys.size), powers)

    def __add__(self, other: Digest) -> Digest:
        keys, where = np.unique(np.concatenate([self.keys, other.keys]), return_inverse=True)
        weights = np.bincount(where, np.concatenate([self.weights, other.weights]), keys.size)
        return Digest(keys, weights, self.powers + other.powers)

    @property
    def n(self) -> float:
        """How many numbers, or the sum of their weights."""
        return float(self.weights.sum())

    def quantile(self, q: float) -> float:
        """The q-quantile, between neighbours as `numpy.quantile`, to 1.2e-4 of its value.

        >>> abs(Digest.of(np.arange(1.0, 1002.0)).quantile(0.99) / 991 - 1) < 1.3e-4
        True
        """
        below = np.concatenate([[0.0], np.cumsum(self.weights)])
        rank = q * max(self.n - 1, 0.0)
        i = min(int(np.searchsorted(below, rank, side="right")) - 1, self.keys.size - 1)
        low, high = (np.array([self.keys[i], self.keys[i] + 1]) << _SHIFT).view(np.float64)
        return float(low + (high - low) * (rank - below[i] + 0.5) / max(self.weights[i], 1.0))


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
