"""`filter` by deflation: one component after the other, each the leading one of what the ones before leave.

An oracle for one component makes one for k (Jambulapati, Kumar, Li, Pandey, Pensia and Tian 2024). It looks along one
direction at a time, where the block form looks along all at once: fewer tests, more passes, and groups of outliers that
share out over several directions are seen later.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np

from pipeline.errors import InputError
from pipeline.folds.rowmaps import Collected, Drawn, RowMap, Sieve, Through, collected
from pipeline.kernels.rank import Rank
from pipeline.matrix import Matrix
from pipeline.robust.filter import LOOKED_AT, Filter, FilterState, check_enough, verified
from pipeline.robust.method import Certificate, Found, Options, Start, looked
from pipeline.solvers import Settings
from pipeline.solvers.solver import Cost
from pipeline.subspace import Subspace

__all__ = ["Deflation"]


@dataclass(frozen=True, eq=False)
class Deflated:
    """Rows without their part along the columns of `basis` (d, j), in units of `factor` (d,)."""

    basis: np.ndarray
    factor: np.ndarray

    def __call__(self, x: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        back = np.divide(1.0, self.factor, out=np.zeros_like(self.factor), where=self.factor != 0)
        z = x if self.factor.all() else np.where(self.factor != 0, x, 0)
        along = (z @ (self.factor[:, None] * self.basis).astype(x.dtype)) @ (self.basis.T * back).astype(x.dtype)
        return x - along, rows


@dataclass(frozen=True, eq=False)
class DeflationState:
    """The filter of the component at hand, the answers for those before, the cuts so far, and the last sample."""

    maps: tuple[RowMap, ...]
    one: FilterState
    found: tuple[Found, ...] = ()
    sieve: Sieve = field(default_factory=Sieve)
    whole: Subspace | None = None
    sample: np.ndarray | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Deflation:
    """The filter for one component, k times."""

    settings: Settings
    options: Options
    name: ClassVar[str] = "filter"

    def surveyed(self) -> bool:
        return False

    def cost(self, X: Matrix) -> Cost:
        cost = self._one.cost(X)
        return replace(cost, passes=cost.passes * self._rank(X) + 1)

    def begin(self, X: Matrix, start: Start, maps: tuple[RowMap, ...]) -> DeflationState:
        self._rank(X)
        check_enough(X, self.settings.rank, self.options.eps)
        return DeflationState(maps, self._one.begin(X, start, maps))

    def fold(self, X: Matrix, state: DeflationState) -> Through:
        if state.whole is None:
            return self._one.fold(X, state.one)
        drawn = Drawn(LOOKED_AT / max(state.whole.n_samples, 1), self.settings.seed)
        look = Collected(partial(looked, state.whole), X.work_dtype)
        return Through(look, (*state.maps, state.sieve, drawn))

    def step(self, X: Matrix, state: DeflationState, summary: Any) -> DeflationState:
        if state.whole is not None:
            return replace(state, sample=collected(summary, state.whole.k + 1))
        one = self._one.step(X, state.one, summary)
        reason = self._one.done(one)
        if reason is None:
            return replace(state, one=one)
        found = (*state.found, self._one.result(X, one))
        sieve = Sieve((*state.sieve.cuts, *one.sieve.cuts))
        last = found[-1].subspace
        basis = np.vstack([f.subspace.basis for f in found]).astype(np.float64)
        if len(found) == self._rank(X):
            return replace(state, found=found, sieve=sieve, whole=_together(found, basis), reason=reason)
        deflated = Deflated(basis.T, last.factor)
        fresh = self._one.begin(X, Start(), (*state.maps, sieve, deflated))
        return replace(state, found=found, sieve=sieve, one=replace(fresh, total=one.total))

    def done(self, state: DeflationState) -> str | None:
        return None if state.sample is None else state.reason

    def result(self, X: Matrix, state: DeflationState) -> Found:
        assert state.whole is not None
        assert state.sample is not None
        whole, scores = state.whole, state.sample[:, :-1]
        scores = scores - scores.mean(axis=0) if self.settings.center else scores
        values, turn = np.linalg.eigh(scores.T @ scores / max(len(scores) - 1, 1))
        values, turn = np.maximum(values[::-1], 0.0), turn[:, ::-1]
        dtype = whole.components.dtype
        basis = (turn.T @ whole.basis).astype(dtype)
        subspace = replace(
            whole,
            components=np.where(whole.present, basis, np.nan).astype(dtype),
            singular_values=np.sqrt(values * max(whole.dof, 1.0)),
        )
        sample = np.column_stack([state.sample[:, :-1] @ turn, state.sample[:, -1]])
        worst = min(state.found, key=lambda found: found.certificate.holds).certificate
        text = f"component by component, of the last: {state.found[-1].certificate.text}"
        removed = state.found[-1].removed
        certificate = Certificate(worst.holds, text if worst.holds else worst.text)
        certificate, suspected = verified(
            certificate, subspace, sample[:, :-1], subspace.k, self.options.eps, removed or 0.0
        )
        return Found(subspace, certificate, removed, state.sieve, sample, measured=True, suspected=suspected)

    @property
    def _one(self) -> Filter:
        return Filter(replace(self.settings, rank=Rank(1)), self.options, alone=True)

    def _rank(self, X: Matrix) -> int:
        if self.settings.rank.open:
            raise InputError(
                f"n_components={self.settings.rank.wanted!r}: search='deflation' needs a number of components"
            )
        return self.settings.rank.most(*X.shape)


def _together(found: tuple[Found, ...], basis: np.ndarray) -> Subspace:
    """A subspace of all components, its variances still to be measured; the mean and the total are of the rows kept."""
    first, last = found[0].subspace, found[-1].subspace
    k = len(basis)
    return replace(
        first,
        components=np.where(first.present, basis, np.nan).astype(first.components.dtype),
        singular_values=np.zeros(k),
        residual=np.full(k, max(float(f.subspace.residual.max()) for f in found)),
        angle_bounds=np.full(k, np.pi / 2),
        n_samples=last.n_samples,
    )
