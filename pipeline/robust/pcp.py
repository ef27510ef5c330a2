"""`pcp`: a low-rank matrix plus a sparse one, for stored matrices: background and foreground, weights and outliers.

Principal component pursuit (Candès, Li, Ma and Wright 2011) by GoDec+ (Guo, Liu, Xu, Xu and Tao 2017): correntropy in
the place of the 1-norm, half-quadratic, in factors; so it folds, and neither part is ever held. The scale of the
correntropy comes down to that of the errors: where there are none besides the sparse ones, the split is exact.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from pipeline.errors import InputError
from pipeline.folds.rowmaps import RowMap, Through, standardised
from pipeline.kernels.divergence import fitted_rows
from pipeline.kernels.rank import Rank
from pipeline.matrix import Matrix
from pipeline.robust.dpd import DensityPower, DensityPowerState
from pipeline.robust.method import Found, Options, Start, factor_of
from pipeline.solvers import Settings
from pipeline.solvers.solver import Cost
from pipeline.subspace import Subspace

__all__ = ["LowRankSparse", "split_rows"]

_MOST, _TRIED_ON, _CLIP = 60, 1000, 3.0  # ranks, rows of the sample, and units that an entry may count for


@dataclass(frozen=True)
class LowRankSparse:
    """Alternating regressions by correntropy, about zero: the mean is a part of what has low rank."""

    settings: Settings
    options: Options
    name: ClassVar[str] = "pcp"

    def surveyed(self) -> bool:
        return True

    def cost(self, X: Matrix) -> Cost:
        rank = Rank(min(10, *X.shape)) if self.settings.rank.open else self.settings.rank
        return self._regressions(rank).cost(X)

    def begin(self, X: Matrix, start: Start, maps: tuple[RowMap, ...]) -> DensityPowerState:
        assert start.center is not None
        zero = np.where(np.isfinite(start.center), 0.0, np.nan)
        start = replace(start, center=zero)
        rank = self.settings.rank
        if rank.wanted == "auto":
            rank = Rank(chosen_rank(X, start))
        elif rank.open:
            raise InputError(f"n_components={rank.wanted!r}: method='pcp' needs a number of components, or 'auto'")
        return self._regressions(rank).begin(X, start, maps)

    def fold(self, X: Matrix, state: DensityPowerState) -> Through:
        return self._regressions().fold(X, state)

    def step(self, X: Matrix, state: DensityPowerState, summary: Any) -> DensityPowerState:
        return self._regressions().step(X, state, summary)

    def done(self, state: DensityPowerState) -> str | None:
        return state.reason

    def result(self, X: Matrix, state: DensityPowerState) -> Found:
        return self._regressions().result(X, state)

    def _regressions(self, rank: Rank | None = None) -> DensityPower:
        settings = replace(self.settings, center=False, rank=rank or self.settings.rank)
        return DensityPower(settings, replace(self.options, alpha=1.0, center=False))


def chosen_rank(X: Matrix, start: Start) -> int:
    """The rank before the widest gap of the singular values of the sample, its entries clipped where any may lie."""
    assert start.sample is not None
    assert start.center is not None
    factor = factor_of(X, np.isfinite(start.center))
    z = (np.nan_to_num(start.sample) * factor)[:, factor != 0]
    z = z[:: max(1, len(z) // _TRIED_ON)]
    low, high = np.percentile(z, [25, 75])
    z = z / (float(high - low) or float(z.std()) or 1.0)
    values = np.linalg.svd(np.clip(z, -_CLIP, _CLIP), compute_uv=False)[: max(2, min(_MOST, min(z.shape) // 2))]
    real = values[values > 1e-9 * values[0]]
    if real.size < values.size:  # nothing is left after these
        return max(int(real.size), 1)
    return int(np.argmax(values[:-1] / values[1:])) + 1


def split_rows(subspace: Subspace, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Low-rank part and sparse part (m, d) of rows in the data's own units; what is left of the rows is noise.

    An entry is of the sparse part where it lost more than half of its weight in the regression of its row.
    """
    story = subspace.provenance["entries"]
    factor = subspace.factor / story["unit"]
    z = standardised(rows, subspace.offset, factor).astype(np.float64)
    basis = np.asarray(subspace.basis.T, np.float64)
    fit = fitted_rows(z, basis, story["alpha"], np.full(z.shape[1], story["sigma"]))
    stretch = np.divide(1.0, factor, out=np.zeros_like(factor), where=factor != 0)
    nothing = np.where(subspace.present, 0.0, np.nan)
    low = (fit.scores @ basis.T) * stretch + subspace.offset + nothing
    sparse = np.where(fit.weights < 0.5, fit.errors, 0.0) * stretch + nothing
    return low, sparse
