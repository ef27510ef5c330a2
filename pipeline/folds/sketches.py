"""What the single pass sees: products of the scatter with a random matrix, and the sketch that errors are measured by.

A block of whole rows gives X^T (X R), so that the range and the co-range of a matrix are sketched in one product; a
sketch Theta Z with random signs Theta (Tropp, Yurtsever, Udell and Cevher 2019, section 6) is independent of it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from pipeline.folds.columns import STANDARDISED, ColumnProduct, Columns, Dual, Factor
from pipeline.folds.products import Products, RowProduct
from pipeline.folds.rows import SHIFTED, Rows
from pipeline.kernels.blocks import doubled
from pipeline.kernels.signs import signs
from pipeline.sources import COLUMNS, ROWS

__all__ = ["ColumnSketch", "ColumnSketches", "RowSketch", "RowSketches"]


@dataclass(frozen=True)
class RowSketches:
    """The products, Theta X (q, d) about their pilot, and the sums of the signs of the rows (q,)."""

    products: Products
    signed: np.ndarray
    sums: np.ndarray

    def about(self, centre: np.ndarray) -> np.ndarray:
        """Theta (X - 1 centre^T) (q, d)."""
        return self.signed + np.outer(self.sums, self.products.about.pilot - centre)


@dataclass(frozen=True, eq=False)
class RowSketch:
    """Fold to the products of the rows' scatter with a thin matrix, and to a signed sketch (q, d) of the rows.

    Parameters
    ----------
    product : RowProduct
    seed, number : int
        Of the signs, and how many rows the sketch has.
    """

    product: RowProduct
    seed: int
    number: int
    side: int = ROWS

    readiness: ClassVar[str] = SHIFTED

    @property
    def dtype(self) -> np.dtype[Any]:
        """In which blocks are read and multiplied."""
        return self.product.dtype

    def prepare(self, x: np.ndarray, at: tuple[int, int], first: Rows | None) -> Rows:
        return self.product.prepare(x, at, first)

    def block(
        self, x: Rows, at: tuple[int, int], held: RowSketches | None, scratch: dict[str, np.ndarray]
    ) -> RowSketches:
        products = self.product.block(x, at, None if held is None else held.products, scratch)
        # The rows are about their pilot, times the roots of their weights.
        theta = signs(self.seed, *at, self.number, x.x.dtype)
        signed, sums = (theta @ x.x).astype(doubled(self.dtype)), theta @ self.roots(at)
        if held is not None:
            signed, sums = held.signed + signed, held.sums + sums
        return RowSketches(products, signed, sums)

    def roots(self, at: tuple[int, int]) -> np.ndarray:
        """Of the weights of some rows."""
        weights = self.product.weights
        return np.ones(at[1] - at[0]) if weights is None else np.sqrt(weights[at[0] : at[1]])

    def combine(self, a: RowSketches, b: RowSketches) -> RowSketches:
        products = self.product.combine(a.products, b.products)
        return RowSketches(products, a.signed + b.about(a.products.about.pilot), a.sums + b.sums)


@dataclass(frozen=True)
class ColumnSketches:
    """Z (Z^T R), the stretches of Z^T R, and Z Theta^T (n, q)."""

    dual: Dual
    factor: Factor
    signed: np.ndarray


@dataclass(frozen=True, eq=False)
class ColumnSketch:
    """Fold to Z (Z^T R) (n, l) with Z^T R (d, l) itself, and to a signed sketch (n, q) of the columns."""

    product: ColumnProduct
    seed: int
    number: int
    side: int = COLUMNS

    readiness: ClassVar[str] = STANDARDISED

    @property
    def dtype(self) -> np.dtype[Any]:
        """In which blocks are read and multiplied."""
        return self.product.dtype

    def prepare(self, x: np.ndarray, at: tuple[int, int], first: Columns | None) -> Columns:
        return self.product.prepare(x, at, first)

    def block(
        self, x: Columns, at: tuple[int, int], held: ColumnSketches | None, scratch: dict[str, np.ndarray]
    ) -> ColumnSketches:
        assert self.product.thin is not None
        z, wide = x.x, doubled(self.dtype)
        part = z.conj().T @ self.product.thin.astype(z.dtype)
        dual = self.product.summed(x, z @ part, None if held is None else held.dual)
        signed = (z @ signs(self.seed, *at, self.number, z.dtype).T).astype(wide)
        parts = ((at[0], part.astype(wide), x.mean, x.spread),)
        if held is not None:
            signed, parts = held.signed + signed, held.factor.parts + parts
        return ColumnSketches(dual, Factor(parts), signed)

    def combine(self, a: ColumnSketches, b: ColumnSketches) -> ColumnSketches:
        return ColumnSketches(
            self.product.combine(a.dual, b.dual),
            replace(a.factor, parts=a.factor.parts + b.factor.parts),
            a.signed + b.signed,
        )
