"""Products C R of the scatter of rows with a thin matrix R: what an iteration of a randomized solver reads data for.

A block gives X^H (X R): both products of one reading; its conjugate transpose (l, d) is kept.
About a pilot p, with s = sum(x - p) and mu the mean,
C R = sum (x - p)(x - p)^T R - s (s^T R) / n, and C R = C1 R + C2 R + g (g^T R) with g = sqrt(n1 n2 / n)(mu1 - mu2).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from pipeline.folds.about import About
from pipeline.folds.rows import SHIFTED, Rows, shifted
from pipeline.kernels.blocks import (
    column_squares,
    doubled,
    magnitudes,
    out_of_range,
    product_in_float64,
    single,
    wide_squares,
)
from pipeline.kernels.rounding import Rounding, measured
from pipeline.sources import ROWS

__all__ = ["Products", "RowProduct"]


@dataclass(frozen=True)
class Products:
    """Where rows lie, sums of squares (d,) about their pilot, and the product (C R)^H (l, d).

    The squares and the product of `central` ones are about the mean. `energy` (d,) are the sums of squares as they were
    accumulated: what rounding errors are relative to.
    """

    about: About
    squares: np.ndarray
    energy: np.ndarray
    product: np.ndarray
    rounding: Rounding
    central: bool = False

    def centred(self, lens: np.ndarray) -> Products:
        """The same about the mean."""
        if self.central:
            return self
        sums, shift = self.about.sums, self.about.shift
        product = self.product - np.outer((sums @ lens).conj(), shift)
        squares = np.maximum(self.squares - (sums * shift.conj()).real, 0.0)
        return replace(self, squares=squares, energy=self.squares, product=product, central=True)


@dataclass(frozen=True, eq=False)
class RowProduct:
    """Fold to the product of the rows' scatter with `lens` (d, l).

    Parameters
    ----------
    dtype : dtype
        In which blocks are multiplied.
    lens : (d, l) array
        Float64; in the data's own units.
    squares : bool
        Whether sums of squares are wanted: they are, once.
    probes : (l, r) array, optional
        Random vectors that rounding is measured with; None where blocks are not measured.
    weights : (n,) array, optional
        How much each row counts.
    """

    dtype: np.dtype[Any]
    lens: np.ndarray
    squares: bool
    probes: np.ndarray | None
    weights: np.ndarray | None = None
    side: int = ROWS
    readiness: ClassVar[str] = SHIFTED

    def prepare(self, x: np.ndarray, at: tuple[int, int], first: Rows | None) -> Rows:
        return shifted(x, None if self.weights is None else self.weights[at[0] : at[1]], first)

    def unmeasured(self) -> RowProduct:
        return replace(self, probes=None)

    def block(self, x: Rows, at: tuple[int, int], held: Products | None, scratch: dict[str, np.ndarray]) -> Products:
        rows, (d, l) = x.x, self.lens.shape
        if held is None:
            none = np.zeros(d)
            held = Products(About.pilot_of(x), none, none, np.zeros((l, d), doubled(self.dtype)), Rounding())
            scratch["product"] = np.empty((l, d), self.dtype)
            scratch["lens"] = np.ascontiguousarray(self.lens, self.dtype)
        # The transpose of the product: its rows are long, as those of the block, and BLAS runs along them.
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is multiplied once more, in float64
            product = np.matmul((rows @ scratch["lens"]).conj().T, rows, out=scratch["product"])
        energy = x.energy
        if wide := out_of_range(energy, rows):
            product = product_in_float64(rows, self.lens).conj().T
            energy = float(wide_squares(rows).sum())
        np.add(held.product, product, out=held.product)
        rounding = held.rounding.seen(energy)
        if self.probes is not None and single(self.dtype) and held.rounding.due(energy):
            exact = product_in_float64(rows, self.lens @ self.probes)
            errors = product.T.astype(doubled(self.dtype)) @ self.probes - exact.conj()
            rounding = held.rounding + measured(errors, energy)
        squares: np.ndarray | float = 0.0
        if self.squares:
            squares = wide_squares(rows) if wide else column_squares(rows)
        return replace(held, about=held.about.plus(x), squares=held.squares + squares, rounding=rounding)

    def combine(self, a: Products, b: Products) -> Products:
        about, gap = a.about.joined(b.about)
        a, b = a.centred(self.lens), b.centred(self.lens)
        product = a.product + b.product
        product += np.outer((gap @ self.lens).conj(), gap)
        squares = a.squares + b.squares + magnitudes(gap)
        energy = a.energy + b.energy + magnitudes(gap)
        rounding = a.rounding + b.rounding
        return Products(about, squares, energy, product, rounding, central=True)
