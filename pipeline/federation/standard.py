"""`Standard`: the mean and the spread that sites share, from the moments that each of them tells (Chan et al. 1983)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from pipeline.federation.record import Record
from pipeline.federation.terms import Terms
from pipeline.kernels.blocks import spread_of
from pipeline.subspace import Subspace

__all__ = ["Standard", "pooled", "settled"]


@dataclass(frozen=True)
class Standard:
    """Samples n, mean (d,) with NaN where there are no values, sums of squares (d,) about it, and the spread if any.

    `energy` is the sum of squares of all entries as they are seen: centred, divided by the spread, times `weights`.
    """

    n: float
    mean: np.ndarray
    squares: np.ndarray
    scale: np.ndarray | None = None
    weights: np.ndarray | None = None
    energy: float = 0.0

    @property
    def there(self) -> np.ndarray:
        """(d,) bool: the features that have values."""
        return np.isfinite(self.mean)

    @property
    def factor(self) -> np.ndarray:
        """(d,) weights / scale."""
        factor = np.ones(self.mean.size) if self.weights is None else self.weights
        return factor if self.scale is None else factor / np.where(self.there, self.scale, 1.0)

    def scaled(self, rule: str | None) -> Standard:
        """With the spread of every feature after a rule such as 'std'."""
        if rule is None:
            return self
        there, mean = self.there, np.where(self.there, self.mean, 0.0)
        scale = spread_of(rule, np.where(there, self.squares, 0.0) / self.n, mean)
        return replace(self, scale=np.where(there, scale, np.nan))

    def measured(self, center: bool) -> Standard:
        """With the energy."""
        squares = self.squares if center else self.squares + self.n * np.where(self.there, self.mean, 0.0) ** 2
        return replace(self, energy=float(self.factor**2 @ np.where(self.there, squares, 0.0)))

    def dressed(self, found: Subspace, center: bool) -> Subspace:
        """A subspace of `components` (k, d) in these units, with this mean and spread."""
        dof = max(self.n - 1.0, 0.0) if center else self.n
        centred = self.energy if center else self.measured(True).energy
        return replace(
            found,
            components=np.where(self.there, found.components, np.nan),
            mean=self.mean,
            n_samples=self.n,
            total_variance=centred / dof if dof else 0.0,
            scale=self.scale,
            weights=self.weights,
            centered=center,
        )


def pooled(moments: Iterable[tuple[float, np.ndarray, np.ndarray]]) -> Standard:
    """Of all sites: each gives n, mean (d,), and sums of squares about its mean (d,).

    >>> both = pooled([(2.0, np.array([1.0]), np.array([2.0])), (1.0, np.array([4.0]), np.array([0.0]))])
    >>> both.mean.tolist(), both.squares.tolist()
    ([2.0], [8.0])
    """
    n, mean, squares = 0.0, np.zeros(()), np.zeros(())
    for n_i, mean_i, squares_i in moments:
        gap, total = mean_i - mean, n + n_i
        squares = squares + squares_i + gap**2 * (n * n_i / total)
        mean = mean + gap * (n_i / total)
        n = total
    return Standard(n, mean, squares)


def settled(replies: Mapping[str, Record], terms: Terms) -> Standard:
    """The standard that follows from the moments of all sites."""
    told = [(r.facts["n"], r.arrays["mean"], r.arrays["squares"]) for r in replies.values()]
    weights = next(iter(replies.values())).arrays.get("weights")
    whole = replace(pooled(told), weights=weights).scaled(terms.scale).measured(terms.center)
    if terms.scale is None or terms.standardise == "global":
        return whole
    own = [replace(pooled([m]), weights=weights).scaled(terms.scale).measured(terms.center) for m in told]
    return replace(whole, energy=sum(s.energy for s in own))
