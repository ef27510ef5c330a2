"""`spherical`: principal components of the directions in which the rows lie from their geometric median.

Spatial signs (Locantore et al. 1999): every row counts the same, however far out. Eigenvectors are those of the
covariance under elliptical laws; outliers that agree on a direction still turn them, unlike those of the filter.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from pipeline.errors import InputError
from pipeline.folds.rowmaps import RowMap, Signs, Through, standardised
from pipeline.kernels.robust import geometric_median
from pipeline.matrix import Matrix
from pipeline.robust.method import Certificate, Found, Options, Start, factor_of, inner_solver
from pipeline.solvers import Settings, Solver
from pipeline.solvers.solver import Cost
from pipeline.sources import ROWS

__all__ = ["MedianState", "MedianStep", "Spherical", "median_start", "median_step"]

_PASSES, _TOL = 30, 1e-6


@dataclass(frozen=True, eq=False)
class MedianStep:
    """Fold to what one step of Weiszfeld's iteration needs: sums of z / |z| and of 1 / |z| about a center (d,).

    With the median of |z| in each block, weighed by its rows: what a step is small beside.
    """

    dtype: np.dtype[Any]
    center: np.ndarray
    factor: np.ndarray
    side: int = ROWS

    def block(self, x: np.ndarray, at: tuple[int, int], held: Any, scratch: dict[str, np.ndarray]) -> Any:
        z = standardised(x, self.center, self.factor)
        size = np.sqrt(np.einsum("ij,ij->i", z, z, dtype=np.float64))
        inverse = np.divide(1.0, size, out=np.zeros_like(size), where=size > 0)
        found = ((inverse.astype(z.dtype) @ z).astype(np.float64), float(inverse.sum()), float(size.sum()), len(z))
        return found if held is None else self.combine(held, found)

    def combine(self, a: Any, b: Any) -> Any:
        return tuple(p + q for p, q in zip(a, b, strict=True))


@dataclass(frozen=True, eq=False)
class MedianState:
    """A center (d,), how often it was moved, and whether it stays."""

    center: np.ndarray
    moved: int = 0
    settled: bool = False


def median_start(X: Matrix, start: Start, options: Options) -> MedianState:
    """The geometric median of the sample, which is settled where that is all of the data; or the center asked for."""
    assert start.sample is not None
    assert start.center is not None
    present = np.isfinite(start.center)
    if options.center is not True:  # none, or one that was computed
        return MedianState(start.center, settled=True)
    factor = factor_of(X, present)
    z = np.where(present, start.sample, 0.0) * factor
    middle = geometric_median(z)
    center = np.divide(middle, factor, out=np.where(present, start.center, np.nan), where=factor > 0)
    return MedianState(center, settled=start.whole)


def median_step(X: Matrix, state: MedianState, summary: Any) -> MedianState:
    """One step of Weiszfeld's iteration."""
    pull, weight, size, n = summary
    if not weight > 0:
        return replace(state, settled=True)
    factor = factor_of(X, np.isfinite(state.center))
    step = pull / weight
    center = state.center + np.divide(step, factor, out=np.zeros_like(step), where=factor > 0)
    settled = bool(np.linalg.norm(step) <= _TOL * size / n) or state.moved + 1 >= _PASSES
    return MedianState(center, state.moved + 1, settled)


@dataclass(frozen=True, eq=False)
class SphericalState:
    """The center, and then the state of the solver that sees the signs."""

    maps: tuple[RowMap, ...]
    median: MedianState
    inner: Any = None
    reason: str | None = None


@dataclass(frozen=True)
class Spherical:
    """PCA of spatial signs about the geometric median."""

    settings: Settings
    options: Options
    name: ClassVar[str] = "spherical"

    def surveyed(self) -> bool:
        return True

    def cost(self, X: Matrix) -> Cost:
        cost = self._inner(X).cost(X)
        return replace(cost, passes=cost.passes + 3, side=ROWS)

    def begin(self, X: Matrix, start: Start, maps: tuple[RowMap, ...]) -> SphericalState:
        return SphericalState(maps, median_start(X, start, self.options), self._inner(X).init(X))

    def fold(self, X: Matrix, state: SphericalState) -> Through:
        factor = factor_of(X, np.isfinite(state.median.center))
        if not state.median.settled:
            return Through(MedianStep(X.work_dtype, state.median.center, factor), state.maps)
        signs = Signs(state.median.center, factor)
        return Through(self._inner(X).fold(X, state.inner), (*state.maps, signs))

    def step(self, X: Matrix, state: SphericalState, summary: Any) -> SphericalState:
        if summary is None:
            raise InputError(f"the rows of {X.name} are all the same: there is no direction in which they vary")
        if not state.median.settled:
            return replace(state, median=median_step(X, state.median, summary))
        inner = self._inner(X)
        at = inner.step(X, state.inner, summary)
        return replace(state, inner=at, reason=inner.done(at))

    def done(self, state: SphericalState) -> str | None:
        return state.reason

    def result(self, X: Matrix, state: SphericalState) -> Found:
        found = self._inner(X).result(X, state.inner)
        found = replace(found, mean=state.median.center, centered=self.settings.center)
        settled = state.median.moved < _PASSES
        text = f"the center {'settled' if settled else 'did not settle'} in {state.median.moved} passes over the data"
        return Found(
            found, Certificate(settled, text + "; signs withstand outliers that share no direction"), judges_rows=True
        )

    def _inner(self, X: Matrix) -> Solver[Any]:
        return inner_solver(X, replace(self.settings, center=False), self.options.solver)
