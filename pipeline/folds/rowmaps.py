"""What is done to rows before a fold sees them: filled, dropped, drawn, moved; as maps that any fold can stand behind.

A map takes rows (m, d) and their positions (m,) and gives those that remain, so that weights and samples of rows are
never stored: they are found again from the rows and the small record that a map is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pipeline.errors import NonfiniteError
from pipeline.fold import Fold, ready
from pipeline.sources import ROWS

__all__ = [
    "Collected",
    "Cut",
    "Drawn",
    "Filled",
    "Moved",
    "Pulled",
    "RowMap",
    "Sieve",
    "Signs",
    "Through",
    "collected",
    "slabs",
    "standardised",
]

_SLAB = 4 << 20  # bytes of rows that are worked on at a time

RowMap = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True, eq=False)
class Through:
    """The fold `inner` of the rows that come through some maps; its summary is None where none did."""

    inner: Fold[Any]
    maps: tuple[RowMap, ...]
    side: int = ROWS

    @property
    def dtype(self) -> np.dtype[Any]:
        """In which blocks are read and multiplied."""
        return self.inner.dtype

    def block(self, x: np.ndarray, at: tuple[int, int], held: Any, scratch: dict[str, np.ndarray]) -> Any:
        rows = np.arange(*at)
        for apply in self.maps:
            x, rows = apply(x, rows)
        if not len(x):
            return held
        inner, weights = self.inner, getattr(self.inner, "weights", None)
        if weights is not None:
            inner = replace(inner, weights=weights[rows])  # type: ignore[type-var]
        at = (0, len(x)) if weights is not None else (int(rows[0]), int(rows[-1]) + 1)
        made = ready(inner, x, at, scratch.get("first"))
        scratch.setdefault("first", made)  # what the next blocks of the same run are shifted by
        return inner.block(made, at, held, scratch)

    def combine(self, a: Any, b: Any) -> Any:
        if a is None or b is None:
            return b if a is None else a
        return self.inner.combine(a, b)


@dataclass(frozen=True, eq=False)
class Cut:
    """Rows with |(x - mean) @ lens - center|^2 of `threshold` or more lie outside.

    mean (d,), lens (d, p) in the data's own units, center (p,); entries of `lens` are 0 at features without values.
    """

    mean: np.ndarray
    lens: np.ndarray
    center: np.ndarray
    threshold: float

    def outside(self, x: np.ndarray) -> np.ndarray:
        """(m,) bool; rows with NaN among the features that count are not outside."""
        with np.errstate(invalid="ignore"):
            return self.squares(x) >= self.threshold

    def squares(self, x: np.ndarray) -> np.ndarray:
        """(m,) what is held against the threshold."""
        count = self.lens.any(axis=1)
        pilot, lens = self.mean.astype(x.dtype), self.lens.astype(x.dtype)
        rest = (self.mean - pilot) @ self.lens + self.center  # pilot: what the dtype can hold of the mean
        seen = (slab if count.all() else np.where(count, slab, 0) for slab in slabs(x))
        y = np.concatenate([(slab - pilot) @ lens for slab in seen]) - rest
        with np.errstate(invalid="ignore", over="ignore"):
            return np.einsum("ij,ij->i", y, y)


@dataclass(frozen=True)
class Sieve:
    """Keeps the rows that no cut puts outside: a list of cuts is all that a filter remembers."""

    cuts: tuple[Cut, ...] = ()

    def __call__(self, x: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        for cut in self.cuts:
            outside = cut.outside(x)
            if outside.any():
                x, rows = x[~outside], rows[~outside]
        return x, rows

    def moved(self, center: np.ndarray) -> Sieve:
        """The same cuts, of rows that were about a center (d,), for these rows as they are."""
        return Sieve(tuple(replace(cut, mean=cut.mean + np.nan_to_num(center)) for cut in self.cuts))


@dataclass(frozen=True, eq=False)
class Filled:
    """Puts `values` (d,) in the place of NaN, and drops rows of which more than half is missing."""

    values: np.ndarray

    def __call__(self, x: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        missing = np.isnan(x)
        missing[:, np.isnan(self.values)] = False
        if not missing.any():
            return x, rows
        lost = missing.sum(axis=1) * 2 > np.isfinite(self.values).sum()
        x = np.where(missing, self.values.astype(x.dtype), x)
        return x[~lost], rows[~lost]


@dataclass(frozen=True, eq=False)
class Drawn:
    """Keeps a `share` of the rows at random: a row's position and the seed decide, not how the matrix is cut."""

    share: float
    seed: int = 0

    def __call__(self, x: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self.share >= 1:
            return x, rows
        drawn = self.numbers(rows) < self.share
        return x[drawn], rows[drawn]

    def numbers(self, rows: np.ndarray) -> np.ndarray:
        """A random number in [0, 1) for each position."""
        return _mixed(_mixed(np.array([self.seed], np.uint64), whole=True) ^ rows.astype(np.uint64))


def _mixed(keys: np.ndarray, whole: bool = False) -> np.ndarray:
    """A number in [0, 1) (or its 64 bits) for each 64-bit key, by the finaliser of splitmix64 (Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        z = keys + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return z if whole else (z >> np.uint64(11)).astype(np.float64) / 2**53


@dataclass(frozen=True, eq=False)
class Moved:
    """Rows less a center (d,)."""

    center: np.ndarray

    def __call__(self, x: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return x - self.center.astype(x.dtype), rows


@dataclass(frozen=True, eq=False)
class Pulled:
    """Rows that lie outside of a ball, drawn to its surface along the line to `center` (d,): no row counts for more
    than one there. (Truncation, as for means and covariances of heavy tails: Catoni 2012; Minsker 2018.)"""

    ball: Cut
    center: np.ndarray

    def __call__(self, x: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        squares = self.ball.squares(x)
        far = squares > self.ball.threshold
        if far.any():
            x, center = x.copy(), self.center.astype(x.dtype)
            x[far] = center + np.sqrt(self.ball.threshold / squares[far])[:, None].astype(x.dtype) * (x[far] - center)
        return x, rows


@dataclass(frozen=True, eq=False)
class Signs:
    """Rows about a center (d,) divided by their lengths, in units of `factor` (d,); rows at the center are dropped."""

    center: np.ndarray
    factor: np.ndarray

    def __call__(self, x: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        z = standardised(x, self.center, self.factor)
        size = np.sqrt(np.einsum("ij,ij->i", z, z, dtype=np.float64))
        apart = size > 0
        z = z[apart] / size[apart, None].astype(z.dtype)
        # Given back in the data's own units, as folds take them; their own factor turns them into signs again.
        # Features without values stay so.
        stretch = np.where(np.isnan(self.center), np.nan, 0.0)
        stretch = np.divide(1.0, self.factor, out=stretch, where=self.factor != 0)
        return z * stretch.astype(z.dtype), rows[apart]


def slabs(x: np.ndarray, at_a_time: int = _SLAB, least: int = 256) -> list[np.ndarray]:
    """Rows (m, d) as views of some bytes each, of at least so many rows: what is made of one is small.

    >>> [len(slab) for slab in slabs(np.zeros((1000, 8)), 16000, least=100)]
    [250, 250, 250, 250]
    """
    return np.array_split(x, max(1, min(-(-x.nbytes // at_a_time), len(x) // least)))


def standardised(x: np.ndarray, center: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """(x - center) * factor, zero at features without values; raises NonfiniteError where an entry is NaN or Inf."""
    if not factor.all():
        x = np.where(factor != 0, x, 0)
    z = x - np.where(factor != 0, center, 0).astype(x.dtype)
    z *= factor.astype(x.dtype)
    if not np.isfinite(z).all():
        raise NonfiniteError("NaN or Inf among the entries")
    return z


@dataclass(frozen=True, eq=False)
class Collected:
    """Fold to what a function of rows gives, each row with its position: for few rows, or few numbers a row."""

    function: Callable[[np.ndarray], np.ndarray]
    work: np.dtype[Any]
    side: int = ROWS

    @property
    def dtype(self) -> np.dtype[Any]:
        """In which blocks are read."""
        return self.work

    def block(self, x: np.ndarray, at: tuple[int, int], held: Any, scratch: dict[str, np.ndarray]) -> list[Any]:
        return [*(held or []), (at[0], self.function(x))]

    def combine(self, a: list[Any], b: list[Any]) -> list[Any]:
        return a + b


def collected(summary: list[Any] | None, width: int) -> np.ndarray:
    """(m, width) what `Collected` found, in the order of the rows."""
    if not summary:
        return np.zeros((0, width))
    return np.concatenate([part for _, part in sorted(summary, key=lambda p: p[0])])
