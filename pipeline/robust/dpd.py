"""`dpd`: singular vectors by density power divergence, for single entries that lie: rSVDdpd, folded.

Rows are regressed on the columns' factor and columns on the rows' scores, in turn, with weights that vanish where an
entry does not fit (Roy, Basu and Ghosh 2021). Regressions of rows need their row only; those of columns add up. As in
the published code the start is one component after the other; then all are fitted at once, and the scale is brought
down to that of the errors.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from pipeline.errors import InputError
from pipeline.folds.rowmaps import RowMap, Through, standardised
from pipeline.kernels.divergence import Sums, column_sums_of, errors_scale, fitted_rows, layered, refined
from pipeline.matrix import Matrix
from pipeline.robust.method import Certificate, Found, Options, Start, factor_of
from pipeline.solvers import Settings
from pipeline.solvers.solver import CONVERGED, LIMIT, Answer, Cost
from pipeline.sources import ROWS

__all__ = ["DensityPower"]

_PASSES, _TOL, _LOOSE = 100, 1e-7, 1e-3
_CLOSER, _CLOSEST = 1e-3, 1e-9  # of rows: share of the last change of the columns, and at least
_UNSEEN = 0.1  # share of the error that chance leaves in the columns, below which a change is none
_GUESSED = 0.05  # share of the rows
_START = 500_000  # entries of the sample that the start is found from
_SCALE, _FINEST = 4.0, 1e-2  # of the weights: in deviations of the errors, and at least
_GRID = np.linspace(0.1, 1.0, 10)  # of alpha, to choose from
_TRIED_ON = 100_000  # entries


@dataclass(frozen=True, eq=False)
class Regressions:
    """Fold to the sums that the columns are fitted from; basis (d', k) over the features that count, in `unit`s."""

    dtype: np.dtype[Any]
    center: np.ndarray
    factor: np.ndarray
    basis: np.ndarray
    spread: np.ndarray
    alpha: float
    sigma: float
    lost: np.ndarray
    tol: float
    side: int = ROWS

    def block(self, x: np.ndarray, at: tuple[int, int], held: Sums | None, scratch: dict[str, np.ndarray]) -> Sums:
        z = standardised(x, self.center, self.factor).astype(np.float64)[:, self.factor != 0]
        sigma = np.maximum(self.sigma, self.lost)
        found = column_sums_of(fitted_rows(z, self.basis, self.spread, self.alpha, sigma, self.tol), z)
        return found if held is None else held + found

    def combine(self, a: Sums, b: Sums) -> Sums:
        return a + b


@dataclass(frozen=True, eq=False)
class DensityPowerState:
    """Center (d,) in the data's own units, basis (d', k), scale of the weights; all else in units of `unit`.

    `lost` (d',) is 1 for columns of which the fit has lost sight, most of their weight being gone: these begin again
    at the coarsest scale.
    """

    maps: tuple[RowMap, ...]
    center: np.ndarray
    unit: float
    basis: np.ndarray
    spread: np.ndarray
    alpha: float
    lost: np.ndarray
    sigma: float = 1.0
    squares: float = 0.0
    values: np.ndarray = field(default_factory=lambda: np.zeros(0))
    rows: int = 0
    passes: int = 0
    change: float = np.inf
    outlying: float = 0.0
    guessed: float = 0.0
    reason: str | None = None


@dataclass(frozen=True)
class DensityPower:
    """Alternating weighted regressions, one pass a turn."""

    settings: Settings
    options: Options
    name: ClassVar[str] = "dpd"

    def surveyed(self) -> bool:
        return True

    def cost(self, X: Matrix) -> Cost:
        n, d = X.shape
        k = self._rank(X) + 1
        height = X.block_height * max(d, 1) * 8
        return Cost(
            10, ROWS, 8 * d * k * (k + 1), 4 * height + 8 * X.block_height * k * k, 8 * d * k * k, 8.0 * n * d * k
        )

    def begin(self, X: Matrix, start: Start, maps: tuple[RowMap, ...]) -> DensityPowerState:
        assert start.sample is not None
        assert start.center is not None
        factor = factor_of(X, np.isfinite(start.center))
        counted = factor != 0
        z = ((start.sample - start.center) * factor)[:, counted]
        low, high = np.percentile(z, [25, 75])
        unit = float(high - low) or float(z.std())
        if not unit > 0:
            raise InputError(f"the rows of {X.name} are all the same: there is no direction in which they vary")
        z = z / unit
        k = min(self._rank(X), *z.shape)
        if k < self._rank(X) and start.whole:
            self.settings.rank.most(X.shape[0], int(counted.sum()))
        alpha = chosen_alpha(z, k) if self.options.alpha == "auto" else float(self.options.alpha)
        basis, spread = layered(z[:: -(-z.size // _START)], k, alpha)
        return DensityPowerState(maps, start.center, unit, basis, spread, alpha, np.zeros(z.shape[1]))

    def fold(self, X: Matrix, state: DensityPowerState) -> Through:
        factor = factor_of(X, np.isfinite(state.center)) / state.unit
        tol = float(np.clip(_CLOSER * state.change, _CLOSEST, _CLOSER))
        fold = Regressions(
            X.work_dtype, state.center, factor, state.basis, state.spread, state.alpha, state.sigma, state.lost, tol
        )
        return Through(fold, state.maps)

    def step(self, X: Matrix, state: DensityPowerState, summary: Sums | None) -> DensityPowerState:
        if summary is None:
            raise InputError(f"no row of {X.name} is left to be fitted")
        moves = self.options.center is True
        basis, shift, values = refined(summary, moves)
        change = float(np.linalg.norm(basis - state.basis @ (state.basis.T @ basis)))
        noise = errors_scale(summary.sizes)
        factor = factor_of(X, np.isfinite(state.center))
        center = state.center.copy()
        center[factor != 0] += shift * state.unit / factor[factor != 0]
        entries = summary.rows * len(basis)
        state = replace(
            state,
            center=center if moves else state.center,
            basis=basis,
            spread=np.square(values) / summary.rows,
            squares=summary.squares,
            values=values,
            rows=summary.rows,
            passes=state.passes + 1,
            change=change,
            outlying=summary.outlying / entries,
            guessed=summary.guessed / summary.rows,
        )
        chance = noise * np.sqrt(len(basis)) / max(float(values[-1]), np.finfo(float).tiny) if state.alpha else 0.0
        # Once the fit stays where it is, the scale comes down to that of the errors.
        stays = change <= max(_LOOSE, _UNSEEN * chance)
        sigma = min(state.sigma, max(_SCALE * noise, _FINEST)) if stays else state.sigma
        lost = (summary.normal[:, -1, -1] < 0.5 * summary.rows).astype(float)
        settled = (sigma > 0.9 * state.sigma and not (lost > state.lost).any()) or not state.alpha
        if change <= max(_TOL, _UNSEEN * chance) and settled:
            return replace(state, reason=CONVERGED)
        return replace(state, sigma=sigma, lost=lost, reason=LIMIT if state.passes >= _PASSES else None)

    def done(self, state: DensityPowerState) -> str | None:
        return state.reason

    def result(self, X: Matrix, state: DensityPowerState) -> Found:
        s, k = self.settings, state.basis.shape[1]
        counted = factor_of(X, np.isfinite(state.center)) != 0
        components = np.zeros((X.shape[1], k))
        components[counted] = state.basis
        values = state.values * state.unit
        dof = max(state.rows - 1.0, 1.0) if s.center else float(state.rows)
        errors = state.squares * state.unit**2
        total = (float(np.square(values).sum()) + errors) / dof
        answer = Answer(
            components,
            values,
            state.center,
            None,
            float(state.rows),
            total,
            np.full(k, state.change),
            np.ones(k),  # how near the truth is, is not known
            state.passes,
        )
        holds = state.reason == CONVERGED
        spare = len(state.basis) - k if state.alpha else np.inf
        text = (
            f"the regressions {'settled' if holds else 'did not settle'} to {state.change:.1e} in {state.passes} passes"
        )
        text += f" with alpha={state.alpha:.2g}; {100 * state.outlying:.2g} % of the entries lost half of their weight"
        if state.guessed > _GUESSED or not spare:
            holds = False
            text += f"; {100 * state.guessed:.2g} % of the rows have too few entries left to determine {k} scores"
            text += f", and {spare} of {len(state.basis)} to spare at best: ask for fewer components"
        story = {
            "unit": state.unit,
            "sigma": state.sigma,
            "alpha": state.alpha,
            "spread": [float(x) for x in state.spread],
        }
        return Found(
            replace(answer, provenance={"entries": story}).subspace(X, s), Certificate(holds, text), measured=True
        )

    def _rank(self, X: Matrix) -> int:
        if self.settings.rank.open:
            raise InputError(
                f"n_components={self.settings.rank.wanted!r}: method={self.options.method!r} needs a number"
            )
        return self.settings.rank.most(*X.shape)


def chosen_alpha(z: np.ndarray, k: int) -> float:
    """The alpha of a grid with the least estimated error: distance from the most robust fit, and variance.

    As `cv.alpha` of the authors' package: |fit - fit at alpha = 1|^2 of both factors, plus
    (n + d) s^2 (1 + alpha^2 / (1 + 2 alpha))^(3/2), s the median error over 0.675.
    """
    z = z[:: -(-z.size // _TRIED_ON)]
    reference, left, errors = alternated(z, k, 1.0)
    noise = float(np.median(np.abs(errors))) / 0.675
    best, least = 1.0, np.inf
    for alpha in _GRID:
        right, scores, _ = alternated(z, k, alpha)
        turn = np.sign(np.sum(right * reference, axis=0))
        bias = np.square(right - reference * turn).sum() + np.square(scores - left * turn).sum()
        score = bias + sum(z.shape) * noise**2 * (1 + alpha**2 / (1 + 2 * alpha)) ** 1.5
        if score < least:
            best, least = float(alpha), score
    return best


def alternated(z: np.ndarray, k: int, alpha: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Factors, each times the singular values, and errors of a fit in memory."""
    (basis, spread), sigma = layered(z, k, alpha), 1.0
    for _ in range(20):
        fit = fitted_rows(z, basis, spread, alpha, np.full(z.shape[1], sigma), _LOOSE)
        sums = column_sums_of(fit, z)
        before, (basis, _, values) = basis, refined(sums, False)
        spread = np.square(values) / len(z)
        if np.linalg.norm(basis - before @ (before.T @ basis)) <= _LOOSE:
            sigma = min(sigma, max(_SCALE * errors_scale(sums.sizes), _FINEST))
    return basis * values, fit.scores, fit.errors
