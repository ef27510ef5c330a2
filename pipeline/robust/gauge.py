"""What blocks of a stream are held against: the cuts so far, and the rows of the sample that these leave."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, reduce

import numpy as np

from pipeline.folds.rowmaps import RowMap, slabs
from pipeline.kernels.factor import EXACT, Factor, factor_of_rows
from pipeline.kernels.robust import examine

__all__ = ["AT_A_TIME", "Block", "Gauge", "projected"]

AT_A_TIME = 8 << 20
"""Bytes of rows that are judged together."""
_MORE, _ALIKE = 10, 4.0  # directions beside those asked for; standard errors by which two variances may differ


@dataclass(frozen=True, eq=False)
class Block:
    """What a block adds: the factor of what is kept, numbers of rows seen and kept."""

    factor: Factor
    seen: int
    kept: int

    def joined(self, other: Block, rank: int, center: bool) -> Block:
        """What two blocks add together."""
        factor = self.factor.merged(other.factor, rank, center)
        return Block(factor, self.seen + other.seen, self.kept + other.kept)


@dataclass(frozen=True, eq=False)
class Gauge:
    """Fixed while blocks pass: maps of rows, `known` rows (r, d) that came through, the factor of what has passed."""

    maps: tuple[RowMap, ...]
    known: np.ndarray
    k: int
    rank: int
    eps: float
    center: bool
    factor: Factor | None = None

    def block(self, z: np.ndarray) -> Block:
        """What rows (m, d) add, once those are left out that the sample contradicts."""
        parts = [self._slab(slab) for slab in slabs(z, AT_A_TIME, 8 * self.rank)]
        return reduce(lambda a, b: a.joined(b, self.rank, self.center), parts)

    def _slab(self, z: np.ndarray) -> Block:
        """The same of rows that are few in bytes.

        Each half is judged along directions of the past and of the other half: along its own, any half is longer than
        rows that it has not seen. Where its variances are those of the sample, none of its rows is looked at.
        """
        kept = z
        for apply in self.maps:
            kept, _ = apply(kept, np.arange(len(kept)))
        halves = [kept[::2], kept[1::2]]
        factors = [self._factor(half) for half in halves]
        found = []
        for rows, own, other in zip(halves, factors, factors[::-1], strict=True):
            inside = self._inside(rows, own, other)
            found.append(own if inside.all() else self._factor(rows[inside]))
        factor = found[0].merged(found[1], self.rank, self.center)
        return Block(factor, len(z), int(factor.n))

    def _factor(self, rows: np.ndarray) -> Factor:
        return factor_of_rows(rows, self.rank, self.center, self.past)

    def _inside(self, rows: np.ndarray, own: Factor, other: Factor) -> np.ndarray:
        """(m,) bool: rows of one half that the sample does not contradict."""
        everything = np.ones(len(rows), bool)
        if not len(rows) or not self.eps:
            return everything
        many = min(self.k + _MORE, int(other.n) // 4)
        lens = np.linalg.qr(np.vstack([self.past[: self.k], other.directions(many, self.past)]).T)[0]
        number = len(self.known)
        variance = self._variances(lens)
        some = variance > 1e-18 * max(float(variance.max(initial=0.0)), np.finfo(float).tiny)
        if number <= 2 * lens.shape[1] or not some.any():
            return everything
        ours = own.squares(lens) / own.n + np.square((own.mean - self._middle) @ lens)
        chance = _ALIKE * (np.sqrt(2 / own.n) + np.sqrt(2 / number))
        if (ours[some] <= (1 + chance) * variance[some]).all():
            return everything
        middle, axes = self._middle.astype(rows.dtype), lens[:, some]
        scores = ((rows - middle) @ axes.astype(rows.dtype)).astype(np.float64)
        return examine(scores, self.eps, len(rows), projected(self.known, self._middle, axes)).inside

    def _variances(self, lens: np.ndarray) -> np.ndarray:
        """(p,) of the sample along the columns of `lens` (d, p)."""
        if self.known.shape[1] <= EXACT:  # a small matrix knows them
            return self.scatter.squares(lens) / max(self.scatter.n, 1)
        return np.square(projected(self.known, self._middle, lens)).mean(axis=0)

    @cached_property
    def scatter(self) -> Factor:
        """The factor of the known rows, of as many directions as are asked for where it is thin."""
        rows = self.known.astype(np.float64) if self.known.shape[1] <= EXACT else self.known
        return factor_of_rows(rows, self.k, self.center)

    @cached_property
    def past(self) -> np.ndarray:
        """(p, d) leading directions of what has passed; of the known rows where nothing has."""
        factor = factor_of_rows(self.known, self.rank, self.center) if self.factor is None else self.factor
        return factor.directions(self.k + _MORE)

    @cached_property
    def _middle(self) -> np.ndarray:
        return self.known.mean(axis=0, dtype=np.float64) if self.center else np.zeros(self.known.shape[1])


def projected(rows: np.ndarray, middle: np.ndarray, lens: np.ndarray) -> np.ndarray:
    """(m, p) in float64 of rows (m, d) about a middle (d,), along the columns of `lens` (d, p)."""
    return np.concatenate([(slab - middle) @ lens for slab in slabs(rows)])
