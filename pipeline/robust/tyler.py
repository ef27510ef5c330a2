"""`tyler`: Tyler's M-estimator of scatter, the most robust one under elliptical laws; for some hundreds of features.

The fixed point of S = d mean(z z^T / z^T S^-1 z) with trace d (Tyler 1987); with no more rows than features, of
(1 - a) times that plus a I (Chen, Wiesel and Hero 2011).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from pipeline.errors import InputError
from pipeline.folds.rowmaps import RowMap, Through, standardised
from pipeline.kernels.linalg import eigh_descending
from pipeline.kernels.robust import whitener_of
from pipeline.matrix import Matrix
from pipeline.robust.method import Certificate, Found, Options, Start, factor_of
from pipeline.robust.spherical import MedianState, MedianStep, median_start, median_step
from pipeline.solvers import Settings
from pipeline.solvers.solver import CONVERGED, LIMIT, Answer, Cost
from pipeline.sources import ROWS

__all__ = ["Tyler"]

_PASSES, _TOL, _MOST = 200, 1e-8, 3000


@dataclass(frozen=True, eq=False)
class Shapes:
    """Fold to sum(z z^T / z^T S^-1 z) and the number of rows apart from the center; whitener (d, d) of S."""

    dtype: np.dtype[Any]
    center: np.ndarray
    factor: np.ndarray
    whitener: np.ndarray
    side: int = ROWS

    def block(self, x: np.ndarray, at: tuple[int, int], held: Any, scratch: dict[str, np.ndarray]) -> Any:
        z = standardised(x, self.center, self.factor).astype(np.float64)[:, self.factor != 0]
        y = z @ self.whitener
        size = np.sqrt(np.einsum("ij,ij->i", y, y))
        apart = size > 0
        z = z[apart] / size[apart, None]
        found = (z.T @ z, int(apart.sum()))
        return found if held is None else self.combine(held, found)

    def combine(self, a: Any, b: Any) -> Any:
        return a[0] + b[0], a[1] + b[1]


@dataclass(frozen=True, eq=False)
class TylerState:
    """The center, the scatter (d, d) of the features with values, and how much the last pass changed it."""

    maps: tuple[RowMap, ...]
    median: MedianState
    scatter: np.ndarray
    rows: int = 0
    passes: int = 0
    change: float = np.inf
    reason: str | None = None


@dataclass(frozen=True)
class Tyler:
    """Fixed-point iteration to Tyler's scatter, one pass a step."""

    settings: Settings
    options: Options
    name: ClassVar[str] = "tyler"

    def surveyed(self) -> bool:
        return True

    def cost(self, X: Matrix) -> Cost:
        n, d = X.shape
        if d > _MOST:
            raise InputError(f"method='tyler' is for up to {_MOST} features, not {d}: take 'spherical' or 'filter'")
        height = 8 * d * X.block_height
        return Cost(20, ROWS, 8 * d * d, 8 * d * d + 3 * height, 8 * 5 * d * d, 4.0 * n * d * d)

    def begin(self, X: Matrix, start: Start, maps: tuple[RowMap, ...]) -> TylerState:
        self.settings.rank.most(*X.shape)
        median = median_start(X, start, self.options)
        d = np.count_nonzero(factor_of(X, np.isfinite(median.center)))
        return TylerState(maps, median, np.eye(int(d)))

    def fold(self, X: Matrix, state: TylerState) -> Through:
        factor = factor_of(X, np.isfinite(state.median.center))
        if not state.median.settled:
            return Through(MedianStep(X.work_dtype, state.median.center, factor), state.maps)
        shapes = Shapes(X.work_dtype, state.median.center, factor, whitener_of(state.scatter))
        return Through(shapes, state.maps)

    def step(self, X: Matrix, state: TylerState, summary: Any) -> TylerState:
        if not state.median.settled:
            return replace(state, median=median_step(X, state.median, summary))
        product, rows = summary if summary is not None else (state.scatter, 0)
        if not rows:
            raise InputError(f"the rows of {X.name} are all the same: there is no direction in which they vary")
        d = len(product)
        shrinkage = 0.0 if rows > d else max(0.1, 1 - 0.9 * rows / d)
        scatter = (1 - shrinkage) * d / rows * product + shrinkage * np.eye(d)
        scatter *= d / np.trace(scatter)
        change = float(np.linalg.norm(scatter - state.scatter) / np.linalg.norm(state.scatter))
        state = replace(state, scatter=scatter, rows=rows, passes=state.passes + 1, change=change)
        if change <= _TOL:
            return replace(state, reason=CONVERGED)
        return replace(state, reason=LIMIT) if state.passes >= _PASSES else state

    def done(self, state: TylerState) -> str | None:
        return state.reason

    def result(self, X: Matrix, state: TylerState) -> Found:
        s, center = self.settings, state.median.center
        values, vectors = eigh_descending(state.scatter)
        counted = factor_of(X, np.isfinite(center)) != 0
        k = s.rank.resolve(np.maximum(values, 0.0), float(values.sum()), state.rows, int(counted.sum()))
        components = np.zeros((X.shape[1], k))
        components[counted] = vectors[:, :k]
        residual = np.full(k, state.change)
        gaps = values[:k] - np.append(values, 0.0)[1 : k + 1]
        sines = np.full(k, state.change * values[0]) / np.maximum(gaps, np.finfo(float).tiny)
        answer = Answer(
            components,
            np.sqrt(np.maximum(values[:k], 0.0) * max(state.rows - 1, 1)),
            center,
            None,
            float(state.rows),
            float(values.sum()),
            residual,
            np.clip(sines, 0.0, 1.0),
            state.passes,
        )
        holds = state.reason == CONVERGED
        text = f"the fixed point {'was reached' if holds else 'was not reached'} to {state.change:.1e} in "
        return Found(answer.subspace(X, s), Certificate(holds, f"{text}{state.passes} passes"), judges_rows=True)
