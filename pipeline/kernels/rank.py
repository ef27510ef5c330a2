"""How many components: a number, a share of the variance, or what rises above the noise."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral, Real

import numpy as np

from pipeline.errors import InputError

__all__ = ["Rank", "noise_threshold"]

_RARE = 2.023  # 99 % quantile of the Tracy-Widom law of order one


@dataclass(frozen=True)
class Rank:
    """The `n_components` that a user asked for: an int, a fraction in (0, 1), 'auto', or None for all.

    >>> Rank(0.8).resolve(np.array([6.0, 2.0, 1.0, 1.0]), 10.0, 100, 4)
    3
    """

    wanted: int | float | str | None

    def __post_init__(self) -> None:
        w = self.wanted
        fine = w is None or w == "auto"
        if isinstance(w, Integral) and not isinstance(w, bool):
            fine = w >= 1
        elif isinstance(w, Real) and not isinstance(w, bool):
            fine = 0.0 < float(w) < 1.0
        if not fine:
            raise InputError(f"n_components={w!r}: give a number from 1, a fraction between 0 and 1, 'auto' or None")

    @property
    def open(self) -> bool:
        """Whether the number follows only from the spectrum."""
        return self.wanted == "auto" or (isinstance(self.wanted, Real) and not isinstance(self.wanted, Integral))

    def known(self, n: int, d: int) -> int | None:
        """How many eigenvalues decide: one more than are wanted, or None for all."""
        return None if self.open else self.most(n, d) + 1

    def most(self, n: int, d: int) -> int:
        """The largest number it can come to for n samples and d features; raises InputError when it does not fit."""
        if d == 0:
            raise InputError("every feature is NaN in every sample: there is nothing to fit")
        if isinstance(self.wanted, Integral):
            if self.wanted > min(n, d):
                raise InputError(
                    f"n_components={self.wanted} is more than min(n_samples, n_features) = "
                    f"min({n}, {d}) = {min(n, d)}: ask for fewer"
                )
            return int(self.wanted)
        return min(n, d)

    def resolve(self, squares: np.ndarray, energy: float, n: int, d: int) -> int:
        """The number of components, or one more than are known when more are needed.

        Parameters
        ----------
        squares : (m,) array
            The largest squared singular values.
        energy : float
            Sum of all of them.
        n, d : int
            Samples and features with values.
        """
        most = self.most(n, d)
        if not self.open:
            return most
        if self.wanted == "auto":  # of pure noise one is kept, as a model has at least one
            return max(1, min(int(np.sum(squares > noise_threshold(squares, energy, n, d) ** 2)), most))
        # The first k whose share is strictly above the fraction, as in scikit-learn.
        share = np.cumsum(squares) / energy if energy > 0 else np.ones(squares.size)
        return min(int(np.searchsorted(share, np.float64(self.wanted), side="right")) + 1, most)


def noise_threshold(squares: np.ndarray, energy: float, n: int, d: int) -> float:
    """Singular value that white noise of this shape exceeds once in a hundred: parallel analysis by its limit law.

    Parallel analysis compares with the largest singular value of noise. For n x d noise of level sigma its square is
    sigma^2 (mu + s t) with mu = (a + b)^2, s = (a + b)(1/a + 1/b)^(1/3), a = sqrt(n - 1/2), b = sqrt(d - 1/2), and t of
    the Tracy and Widom law (Johnstone 2001). The level is that of what the components above the threshold leave, found
    by fixed-point iteration (as in the deflated parallel analysis of Dobriban and Owen 2019): it needs the leading
    values and the total only, so that it serves every solver. Components whose strength is above the transition of
    Baik, Ben Arous and Peche (2005) rise above it as matrices grow; below that no method can tell them from noise.
    """
    if not energy > 0:
        return 0.0
    a, b = np.sqrt(max(n - 0.5, 0.5)), np.sqrt(max(d - 0.5, 0.5))
    largest = (a + b) ** 2 + _RARE * (a + b) * (1 / a + 1 / b) ** (1 / 3)
    least = np.finfo(np.float64).eps * max(n, d) * float(squares[0])  # where there is no noise, rounding is none either
    kept, threshold = 0, 0.0
    for _ in range(squares.size + 1):
        left = max(energy - float(squares[:kept].sum()), 0.0)
        threshold = max(left / max((n - kept) * (d - kept), 1) * largest, least)
        above = int(np.sum(squares > threshold))
        if above <= kept:
            break
        kept = above
    return float(np.sqrt(threshold))
