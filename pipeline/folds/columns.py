"""Folds of a transposed walk: each block holds whole columns, so that it can be centred and scaled where it is read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from pipeline.kernels.blocks import (
    adjoint_product,
    doubled,
    out_of_range,
    product_in_float64,
    single,
    standardise_columns,
    wide_squares,
)
from pipeline.kernels.rounding import Rounding, measured
from pipeline.sources import COLUMNS

__all__ = ["ColumnFactor", "ColumnProduct", "Dual", "Factor", "Standard"]


STANDARDISED = "standardised columns"


@dataclass(frozen=True, eq=False)
class Standard:
    """How columns are made comparable: centred, divided by their spread, multiplied by weights; rows are weighted."""

    center: bool = True
    scale: str | None = None
    weights: np.ndarray | None = None
    sample_weights: np.ndarray | None = None

    def apply(self, x: np.ndarray, at: tuple[int, int]) -> Columns:
        """Standardise the columns [at[0], at[1]) in place."""
        weights = None if self.weights is None else self.weights[at[0] : at[1]]
        mean, spread, squares = standardise_columns(x, weights, self.sample_weights, self.center, self.scale)
        about = float(squares.sum())
        return Columns(x, mean, spread, about, about if self.center else float(wide_squares(x).sum()))


@dataclass(frozen=True)
class Columns:
    """Standardised columns (n, c), their means and spreads (c,), their sum of squares about the means and in all."""

    x: np.ndarray
    mean: np.ndarray
    spread: np.ndarray | None
    squares: float
    energy: float


@dataclass(frozen=True)
class Dual:
    """Z Z^H R (n, l) of the columns read so far, in double precision.

    `squares` is the sum of squares about the means, `energy` that of Z, `present` the number of columns with values;
    `loud` is the sum of squares as they were accumulated: what rounding errors are relative to.
    """

    product: np.ndarray
    squares: float
    energy: float
    present: int
    rounding: Rounding
    loud: float = 0.0


@dataclass(frozen=True, eq=False)
class ColumnProduct:
    """Fold to Z (Z^H R) for a thin R (n, l), or to the Gram matrix Z Z^H (n, n) of the samples where there is none.

    Parameters
    ----------
    dtype : dtype
        In which blocks are multiplied.
    standard : Standard
        How columns are centred, scaled and weighted.
    probes : (l, r) or (n, r) array, optional
        Random vectors that rounding is measured with; None where blocks are not measured.
    thin : (n, l) array, optional
        R, in float64.
    """

    dtype: np.dtype[Any]
    standard: Standard
    probes: np.ndarray | None
    thin: np.ndarray | None = None
    side: int = COLUMNS
    readiness: ClassVar[str] = STANDARDISED

    def prepare(self, x: np.ndarray, at: tuple[int, int], first: Columns | None) -> Columns:
        return self.standard.apply(x, at)

    def unmeasured(self) -> ColumnProduct:
        return replace(self, probes=None)

    def block(self, x: Columns, at: tuple[int, int], held: Dual | None, scratch: dict[str, np.ndarray]) -> Dual:
        z, adjoint = x.x, x.x.conj().T
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is multiplied once more, in float64
            product = z @ (adjoint if self.thin is None else adjoint @ self.thin.astype(self.dtype))
        return self.summed(x, product, held)

    def summed(self, x: Columns, product: np.ndarray, held: Dual | None) -> Dual:
        """What is held with the product of one block more."""
        adjoint = x.x.conj().T
        if out_of_range(x.energy, x.x):
            product = product_in_float64(adjoint, self.thin)
        if held is None:
            held = Dual(np.zeros(product.shape, doubled(self.dtype)), 0.0, 0.0, 0, Rounding())
        rounding = held.rounding.seen(x.energy)
        if self.probes is not None and single(self.dtype) and held.rounding.due(x.energy):
            lens = self.probes if self.thin is None else self.thin @ self.probes
            errors = product.astype(doubled(self.dtype)) @ self.probes - product_in_float64(adjoint, lens)
            rounding = held.rounding + measured(errors, x.energy)
        np.add(held.product, product, out=held.product)
        return replace(
            held,
            squares=held.squares + x.squares,
            energy=held.energy + x.energy,
            loud=held.loud + x.energy,
            present=held.present + int(np.isfinite(x.mean).sum()),
            rounding=rounding,
        )

    def combine(self, a: Dual, b: Dual) -> Dual:
        return Dual(
            a.product + b.product,
            a.squares + b.squares,
            a.energy + b.energy,
            a.present + b.present,
            a.rounding + b.rounding,
            a.loud + b.loud,
        )


@dataclass(frozen=True)
class Factor:
    """Stretches of the long side: first column, Z^T U (c, k), means and spreads."""

    parts: tuple[tuple[int, np.ndarray, np.ndarray, np.ndarray | None], ...]

    def joined(self) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Z^T U (d, k), mean (d,) and spread (d,) of all columns."""
        parts = sorted(self.parts, key=lambda p: p[0])
        spread = None if parts[0][3] is None else np.concatenate([p[3] for p in parts if p[3] is not None])
        return np.concatenate([p[1] for p in parts]), np.concatenate([p[2] for p in parts]), spread


@dataclass(frozen=True, eq=False)
class ColumnFactor:
    """Fold to Z^H U for the left vectors U (n, k), block by block, with the means and spreads of the columns."""

    dtype: np.dtype[Any]
    standard: Standard
    left: np.ndarray
    side: int = COLUMNS
    readiness: ClassVar[str] = STANDARDISED

    def prepare(self, x: np.ndarray, at: tuple[int, int], first: Columns | None) -> Columns:
        return self.standard.apply(x, at)

    def block(self, x: Columns, at: tuple[int, int], held: Factor | None, scratch: dict[str, np.ndarray]) -> Factor:
        part = (at[0], adjoint_product(x.x, self.left), x.mean, x.spread)
        return Factor((*(held.parts if held else ()), part))

    def combine(self, a: Factor, b: Factor) -> Factor:
        return Factor(a.parts + b.parts)
