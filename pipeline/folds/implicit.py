"""What the folds do with blocks that are never made dense: centred and scaled by algebra, not by subtraction.

Walking rows, the pilot is zero: sums and products are taken of the entries as they are, and the mean is taken out when
summaries are combined or finished, in double precision; the `energy` that a summary carries is that of the entries, so
that certificates know what may have cancelled. Walking columns, with w the roots of the row weights and F the factors,
Z = diag(w) (X - 1 mu^T) F gives Z^H R = F (X^H (w R) - conj(mu) (w^T R)) and Z T = w (X F T - 1 (mu^T F T)).
"""

from __future__ import annotations

from dataclasses import replace
from functools import singledispatch
from typing import Any

import numpy as np

from pipeline.errors import InputError, NonfiniteError
from pipeline.folds.columns import ColumnFactor, ColumnProduct, Dual, Factor, Standard
from pipeline.folds.defects import Defects, Found
from pipeline.folds.means import Observed, RowMeans
from pipeline.folds.moments import Moments, RowMoments
from pipeline.folds.pairing import Pair, Pairing
from pipeline.folds.products import Products, RowProduct
from pipeline.kernels.blocks import LOUDEST, spread_of
from pipeline.kernels.implicit import ImplicitBlock
from pipeline.kernels.rounding import Rounding

__all__ = ["implicit_block", "takes_implicit"]


@singledispatch
def implicit_block(fold: Any, x: ImplicitBlock, at: tuple[int, int], held: Any) -> Any:
    """What `fold.block` does, for a block that is not dense; registered for the folds that can.

    Other folds get their blocks dense, in the lower cuts that `Matrix.cuts` gives for that.
    """
    raise NotImplementedError(type(fold).__name__)


def takes_implicit(fold: Any) -> bool:
    """Whether `implicit_block` knows the fold."""
    return implicit_block.dispatch(type(fold)) is not implicit_block.dispatch(object)


@implicit_block.register
def _moments(fold: RowMoments, x: ImplicitBlock, at: tuple[int, int], held: Moments | None) -> Moments:
    d, weights = x.shape[1], _part(fold.weights, at)
    x, absent = _present(x, None if held is None else held.absent)
    if held is None:
        none = np.zeros(d)
        held = Moments(0.0, 0, none, absent, none, np.zeros((d, d), x.dtype), none, Rounding())
    x.add_gram(held.scatter, weights)
    _check_loud(float(np.trace(held.scatter).real))
    n = float(x.shape[0] if weights is None else weights.sum())
    return replace(held, n=held.n + n, rows=held.rows + x.shape[0], sums=held.sums + x.sums(weights))


@implicit_block.register
def _products(fold: RowProduct, x: ImplicitBlock, at: tuple[int, int], held: Products | None) -> Products:
    (d, l), weights = fold.lens.shape, _part(fold.weights, at)
    x, absent = _present(x, None if held is None else held.absent)
    if held is None:
        none = np.zeros(d)
        held = Products(0.0, none, absent, none, none, none, np.zeros((l, d), x.dtype), Rounding())
    image = x.times(fold.lens)
    if weights is not None:
        image *= weights[:, None]
    np.add(held.product, x.adjoint(image).conj().T, out=held.product)
    squares = x.squares(weights) if fold.squares else np.zeros(d)
    _check_loud(float(squares.sum()))
    n = float(x.shape[0] if weights is None else weights.sum())
    return replace(held, n=held.n + n, sums=held.sums + x.sums(weights), squares=held.squares + squares)


@implicit_block.register
def _column_product(fold: ColumnProduct, x: ImplicitBlock, at: tuple[int, int], held: Dual | None) -> Dual:
    x, columns = _Columns.of(fold.standard, x, at)
    n = x.shape[0]
    if held is None:
        shape = (n, n) if fold.thin is None else fold.thin.shape
        held = Dual(np.zeros(shape, x.dtype), 0.0, 0.0, 0, Rounding())
    if fold.thin is None:
        columns.add_gram(x, held.product)
    else:
        np.add(held.product, columns.times(x, columns.adjoint(x, fold.thin)), out=held.product)
    loud = float((columns.raw * columns.factor**2).sum())
    _check_loud(loud)
    centred = float(columns.squares.sum())
    return replace(
        held,
        squares=held.squares + centred,
        energy=held.energy + (centred if fold.standard.center else loud),
        loud=held.loud + loud,
        present=held.present + int(np.isfinite(columns.mean).sum()),
    )


@implicit_block.register
def _column_factor(fold: ColumnFactor, x: ImplicitBlock, at: tuple[int, int], held: Factor | None) -> Factor:
    x, columns = _Columns.of(fold.standard, x, at)
    part = (at[0], columns.adjoint(x, fold.left), columns.mean, columns.spread)
    return Factor((*(held.parts if held else ()), part))


@implicit_block.register
def _means(fold: RowMeans, x: ImplicitBlock, at: tuple[int, int], held: Observed | None) -> Observed:
    weights = _part(fold.weights, at)
    x, unseen, missing = x.observed(weights)
    total = float(x.shape[0] if weights is None else weights.sum())
    weight = np.where(total - unseen > 1e-9 * total, total - unseen, 0.0)
    mean = np.divide(x.sums(weights), weight, out=np.zeros(x.shape[1], x.dtype), where=weight > 0)
    found = Observed(weight, mean, missing, x.shape[0])
    return found if held is None else fold.combine(held, found)


@implicit_block.register
def _defects(fold: Defects, x: ImplicitBlock, at: tuple[int, int], held: Found | None) -> Found:
    rows, columns, values = x.wrong()
    first = np.full(x.shape[1], np.iinfo(np.int64).max)
    np.minimum.at(first, columns, at[0] + rows)
    nan, bad = (np.bincount(columns[which], minlength=x.shape[1]) for which in (np.isnan(values), slice(None)))
    found = Found(x.shape[0], nan, bad, first)
    return found if held is None else fold.combine(held, found)


@implicit_block.register
def _pairing(fold: Pairing, x: ImplicitBlock, at: tuple[int, int], held: Pair | None) -> Pair:
    return fold.block(x, at, held, {})


class _Columns:
    """Means, spreads and factors of the columns of a block, and the products that follow."""

    @staticmethod
    def of(standard: Standard, x: ImplicitBlock, at: tuple[int, int]) -> tuple[ImplicitBlock, _Columns]:
        x, absent = _present(x, None)
        return x, _Columns(standard, x, at, absent)

    def __init__(self, standard: Standard, x: ImplicitBlock, at: tuple[int, int], absent: np.ndarray) -> None:
        weights = standard.sample_weights
        n = float(x.shape[0] if weights is None else weights.sum())
        mean = x.sums(weights) / n if n else np.zeros(x.shape[1])
        about = x.squares(weights, about=mean)
        self.raw = x.squares(weights)
        self.factor = np.ones(x.shape[1]) if standard.weights is None else standard.weights[at[0] : at[1]]
        nan = np.where(absent, np.nan, 1.0)
        self.spread = None
        if standard.scale is not None:
            spread = spread_of(standard.scale, about / n if n else about, mean)
            self.factor = self.factor / spread
            self.spread = spread * nan
        self.squares = about * self.factor**2
        self.mean = mean * nan
        self.roots = np.ones(x.shape[0]) if weights is None else np.sqrt(weights)
        self.taken = mean if standard.center else np.zeros_like(mean)

    def adjoint(self, x: ImplicitBlock, thin: np.ndarray) -> np.ndarray:
        """Z^H R (c, l)."""
        image = x.adjoint(self.roots[:, None] * thin) - np.outer(self.taken.conj(), self.roots @ thin)
        return self.factor[:, None] * image

    def times(self, x: ImplicitBlock, thin: np.ndarray) -> np.ndarray:
        """Z T (n, l)."""
        thin = self.factor[:, None] * thin
        return self.roots[:, None] * (x.times(thin) - self.taken @ thin)

    def add_gram(self, x: ImplicitBlock, out: np.ndarray) -> None:
        """out += Z Z^H (n, n)."""
        plain = np.zeros_like(out)
        x.add_dual_gram(plain, self.factor**2)
        middle = x.times((self.factor**2 * self.taken.conj())[:, None])[:, 0]
        plain -= middle[:, None]
        plain -= middle.conj()[None, :]
        plain += float((self.factor**2 * (self.taken * self.taken.conj()).real).sum())
        out += self.roots[:, None] * plain * self.roots


def _present(x: ImplicitBlock, known: np.ndarray | None) -> tuple[ImplicitBlock, np.ndarray]:
    """The block with zeros in columns that are NaN throughout; these must be those known already."""
    absent = x.absent()
    if known is not None and not np.array_equal(absent, known):
        raise NonfiniteError("a feature is NaN in some samples only")
    return x.without(absent), absent


def _part(weights: np.ndarray | None, at: tuple[int, int]) -> np.ndarray | None:
    return None if weights is None else weights[at[0] : at[1]]


def _check_loud(energy: float) -> None:
    if not energy < LOUDEST:
        raise InputError("entries are so large that their squares overflow: divide the data by a constant first")
