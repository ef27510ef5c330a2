"""What the folds do with blocks that are never made dense: centred and scaled by algebra, not by subtraction.

Walking rows, a block gives moments about its own mean m: with Y = X R - 1 (m^T R), whose columns sum to zero,
C R = X^H Y; blocks are combined as any others. Walking columns, with w the roots of the row weights, n the sum of their
squares and F the factors, Z = diag(w) (X - 1 mu^T) F gives Z^H R = F X^H (w R - w^2 (w^T R) / n) and
Z T = w (X F T - 1 (mu^T F T)). The `energy` that a summary carries is that of the entries before the mean was taken
out, so that certificates know what may have cancelled.
"""

from __future__ import annotations

from dataclasses import replace
from functools import singledispatch
from typing import Any

import numpy as np

from pipeline.errors import InputError
from pipeline.folds.about import About
from pipeline.folds.columns import ColumnFactor, ColumnProduct, Dual, Factor, Standard
from pipeline.folds.defects import Defects, Found
from pipeline.folds.means import Observed, RowMeans
from pipeline.folds.moments import Moments, RowMoments
from pipeline.folds.pairing import Pair, Pairing
from pipeline.folds.products import Products, RowProduct
from pipeline.folds.scores import ColumnScores, RowScores
from pipeline.folds.sketches import ColumnSketch, ColumnSketches, RowSketch, RowSketches
from pipeline.folds.witness import Seen, Witness
from pipeline.kernels.blocks import LOUDEST, doubled, single, spread_of
from pipeline.kernels.implicit import ImplicitBlock
from pipeline.kernels.rounding import Rounding, measured
from pipeline.kernels.signs import signs

__all__ = ["implicit_block", "takes_implicit"]


@singledispatch
def implicit_block(fold: Any, x: ImplicitBlock, at: tuple[int, int], held: Any) -> Any:
    """What `fold.block` does, for a block that is not dense; registered for the folds that can.

    Other folds get their blocks dense, in the lower cuts that `Matrix.cuts` gives for that.
    """
    raise NotImplementedError(type(fold).__name__)


def takes_implicit(fold: Any) -> bool:
    """Whether `implicit_block` knows the fold."""
    if isinstance(fold, Witness):
        return takes_implicit(fold.fold)
    return implicit_block.dispatch(type(fold)) is not implicit_block.dispatch(object)


@implicit_block.register
def _moments(fold: RowMoments, x: ImplicitBlock, at: tuple[int, int], held: Moments | None) -> Moments:
    d, weights = x.shape[1], _part(fold.weights, at)
    x, absent = _present(x)
    x, pilot = x.shifted()
    n, sums = _count(x, weights), x.sums(weights)
    scatter = np.zeros((d, d), x.dtype)
    x.add_gram(scatter, weights, about=_over(sums, n))
    energy = x.squares(weights)
    _check_loud(float(energy.sum()))
    found = Moments(About(n, pilot, absent, sums), x.shape[0], scatter, energy, Rounding(), central=True)
    return found if held is None else fold.combine(held, found)


@implicit_block.register
def _products(fold: RowProduct, x: ImplicitBlock, at: tuple[int, int], held: Products | None) -> Products:
    weights = _part(fold.weights, at)
    x, absent = _present(x)
    x, pilot = x.shifted()
    n, sums = _count(x, weights), x.sums(weights)
    middle = _over(sums, n)
    narrow, rounding = single(fold.dtype), Rounding()
    product, image = _product(x.in_single() if narrow else x, fold.lens, middle, weights)
    if narrow:
        size = float(np.vdot(image, image).real)
        rounding = rounding.seen(size)
        if fold.probes is not None and (held.rounding if held else Rounding()).due(size):
            exact, _ = _product(x, fold.lens @ fold.probes, middle, weights)
            rounding = measured(product @ fold.probes - exact, size)
    none = np.zeros(x.shape[1])
    squares, energy = (x.squares(weights, middle), x.squares(weights)) if fold.squares else (none, none)
    _check_loud(float(energy.sum()))
    about = About(n, pilot, absent, sums)
    found = Products(about, squares, energy, product.conj().T, rounding, central=True)
    return found if held is None else fold.combine(held, found)


def _product(
    x: ImplicitBlock, lens: np.ndarray, middle: np.ndarray, weights: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """X'^H diag(weights) X' R (c, l) and diag(weights) X' R (m, l), with X' = X - 1 middle^T."""
    image = x.times(lens.astype(x.dtype, copy=False)) - (middle @ lens).astype(x.dtype, copy=False)
    if weights is not None:
        image *= weights[:, None]
    product = x.adjoint(image) - np.outer(middle.conj(), image.sum(axis=0, dtype=doubled(x.dtype)))
    return product, image


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
def _row_scores(fold: RowScores, x: ImplicitBlock, at: tuple[int, int], held: list[Any] | None) -> list[Any]:
    x, _ = _present(x)
    return [*(held or []), (at[0], (x.times(fold.lens) - fold.offset @ fold.lens).astype(fold.dtype))]


@implicit_block.register
def _column_scores(fold: ColumnScores, x: ImplicitBlock, at: tuple[int, int], held: np.ndarray | None) -> np.ndarray:
    x, columns = _Columns.of(fold.standard, x, at)
    part = columns.times(x, fold.right[at[0] : at[1]])
    return part if held is None else np.add(held, part, out=held)


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


@implicit_block.register
def _row_sketch(fold: RowSketch, x: ImplicitBlock, at: tuple[int, int], held: RowSketches | None) -> RowSketches:
    products = _products(fold.product, x, at, None)
    theta = signs(fold.seed, *at, fold.number) * fold.roots(at)
    x, _ = _present(x)
    sums = theta.sum(axis=1)
    signed = x.adjoint(theta.T).conj().T - np.outer(sums, products.about.pilot)
    found = RowSketches(products, signed, sums)
    return found if held is None else fold.combine(held, found)


@implicit_block.register
def _column_sketch(
    fold: ColumnSketch, x: ImplicitBlock, at: tuple[int, int], held: ColumnSketches | None
) -> ColumnSketches:
    assert fold.product.thin is not None
    dual = _column_product(fold.product, x, at, None)
    x, columns = _Columns.of(fold.product.standard, x, at)
    part = at[0], columns.adjoint(x, fold.product.thin), columns.mean, columns.spread
    signed = columns.times(x, signs(fold.seed, *at, fold.number).T)
    found = ColumnSketches(dual, Factor((part,)), signed)
    return found if held is None else fold.combine(held, found)


class _Columns:
    """Means, spreads and factors of the columns of a block, and the products that follow."""

    @staticmethod
    def of(standard: Standard, x: ImplicitBlock, at: tuple[int, int]) -> tuple[ImplicitBlock, _Columns]:
        x, absent = _present(x)
        x, pilot = x.shifted() if standard.center else (x, np.zeros(x.shape[1]))
        return x, _Columns(standard, x, at, absent, pilot)

    def __init__(
        self, standard: Standard, x: ImplicitBlock, at: tuple[int, int], absent: np.ndarray, pilot: np.ndarray
    ) -> None:
        weights = standard.sample_weights
        n = _count(x, weights)
        middle = _over(x.sums(weights), n)
        mean, about = pilot + middle, x.squares(weights, about=middle)
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
        self.shares = self.roots**2 / n if standard.center and n else np.zeros(x.shape[0])
        self.taken = middle if standard.center else np.zeros_like(middle)

    def adjoint(self, x: ImplicitBlock, thin: np.ndarray) -> np.ndarray:
        """Z^H R (c, l)."""
        return self.factor[:, None] * x.adjoint(self.roots[:, None] * thin - np.outer(self.shares, self.roots @ thin))

    def times(self, x: ImplicitBlock, thin: np.ndarray) -> np.ndarray:
        """Z T (n, l)."""
        thin = self.factor[:, None] * thin
        return self.roots[:, None] * (x.times(thin) - self.taken @ thin)

    def add_gram(self, x: ImplicitBlock, out: np.ndarray) -> None:
        """out += Z Z^H (n, n)."""
        plain = np.zeros_like(out)
        x.add_dual_gram(plain, self.factor**2, about=self.taken)
        out += self.roots[:, None] * plain * self.roots


def _present(x: ImplicitBlock) -> tuple[ImplicitBlock, np.ndarray]:
    """The block with zeros in columns that are NaN throughout, and which these are."""
    absent = x.absent()
    return x.without(absent), absent


def _count(x: ImplicitBlock, weights: np.ndarray | None) -> float:
    return float(x.shape[0] if weights is None else weights.sum())


def _over(sums: np.ndarray, n: float) -> np.ndarray:
    return sums / n if n else np.zeros_like(sums)


def _part(weights: np.ndarray | None, at: tuple[int, int]) -> np.ndarray | None:
    return None if weights is None else weights[at[0] : at[1]]


def _check_loud(energy: float) -> None:
    if not energy < LOUDEST:
        raise InputError("entries are so large that their squares overflow: divide the data by a constant first")


@implicit_block.register
def _(fold: Witness, x: ImplicitBlock, at: tuple[int, int], held: Any) -> Any:
    inside = held.summary if isinstance(held, Seen) else held
    return fold.implicit(x, implicit_block(fold.fold, x, at, inside), at, held)
