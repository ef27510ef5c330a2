"""`Robust`: a robust method as a solver of the driver: a survey first, where one is needed, and a look at the end."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
from scipy.stats import chi2

from pipeline.driver import check_entries
from pipeline.errors import ConvergenceError, InputError, NonfiniteError
from pipeline.fold import Fold
from pipeline.folds.rowmaps import Collected, Drawn, Filled, RowMap, Sieve, Through, collected
from pipeline.kernels.blocks import check_energy
from pipeline.kernels.robust import center_and_spread, tail_cutoff
from pipeline.labels import Labels
from pipeline.matrix import Matrix
from pipeline.robust.cuts import written_cuts
from pipeline.robust.filter import bent, check_enough
from pipeline.robust.method import Certificate, Found, Method, Options, Start, looked
from pipeline.robust.survey import Survey, sample_size, start_from
from pipeline.solvers import Settings
from pipeline.solvers.solver import Cost
from pipeline.subspace import Subspace

__all__ = ["LEVEL", "Robust", "RobustState"]

LEVEL = 0.975  # quantile of normal data that the cut-offs are
_LOOKED_AT, _MAPPED = 20_000, 500


@dataclass(frozen=True, eq=False)
class RobustState:
    """What has been done of survey, method and look: None where it has not."""

    start: Start | None = None
    inner: Any = None
    found: Found | None = None
    reason: str | None = None
    sample: np.ndarray | None = None


@dataclass(frozen=True)
class Robust:
    """A method between a survey and a look, which measures what the scores of rows are held against."""

    settings: Settings
    options: Options
    method: Method[Any]

    name: ClassVar[str] = "robust"
    exact: ClassVar[bool] = False
    fillings: ClassVar[tuple[str, ...]] = ("mean",)

    def cost(self, X: Matrix) -> Cost:
        cost = self.method.cost(X)
        width = 0 if self.settings.rank.open else self.settings.rank.most(*X.shape) + 1
        sample = 8 * sample_size(X) * X.shape[1] if self._surveyed() else 0
        looked_at = 8 * width * _LOOKED_AT
        held = cost.client_bytes + 3 * sample + 4 * looked_at
        return replace(
            cost,
            passes=cost.passes + self._surveyed(),
            open_ended=True,
            summary_bytes=max(cost.summary_bytes, looked_at, sample),
            scratch_bytes=cost.scratch_bytes + X.block_height * (X.shape[1] + width) * 8,
            client_bytes=held,
            state_bytes=held,
        )

    def init(self, X: Matrix) -> RobustState:
        self.settings.rank.most(*X.shape)
        check_enough(X, self.settings.rank, self.options.eps)
        return RobustState() if self._surveyed() else self._begun(X, Start())

    def fold(self, X: Matrix, state: RobustState) -> Fold[Any]:
        if state.start is None:
            drawn = Drawn(sample_size(X) / max(X.shape[0], 1), self.settings.seed)
            return Survey(X.work_dtype, drawn, self.options.center == "median_of_means")
        if state.found is None:
            return self.method.fold(self._seen(X, state.start), state.inner)
        drawn = Drawn(_LOOKED_AT / max(X.shape[0], 1), self.settings.seed)
        maps: tuple[RowMap, ...] = (*self._maps(state.start), state.found.sieve, drawn)
        return Through(Collected(partial(looked, state.found.subspace), X.work_dtype), maps)

    def step(self, X: Matrix, state: RobustState, summary: Any) -> RobustState:
        try:
            return self._stepped(X, state, summary)
        except NonfiniteError as error:  # in rows that were gathered: in blocks the driver looks up the place
            check_entries(X, fillings=self.fillings)
            raise InputError(f"{X.name}: {error}") from error

    def _stepped(self, X: Matrix, state: RobustState, summary: Any) -> RobustState:
        if state.start is None:
            return self._begun(X, start_from(summary, X, self.options, self.options.missing))
        if state.found is not None:
            return replace(state, sample=collected(summary, state.found.subspace.k + 1))
        seen = self._seen(X, state.start)
        at = self.method.step(seen, state.inner, summary)
        reason = self.method.done(at)
        if reason is None:
            return replace(state, inner=at)
        found = self.method.result(seen, at)
        subspace = replace(found.subspace, weights=X.weights)
        if state.start.scale is not None:
            subspace = replace(subspace, scale=state.start.scale)
        certificate, rows = found.certificate, state.start.sample
        if found.judges_rows and certificate.holds and rows is not None:
            why = bent(subspace, rows, self.options.eps, self.settings.seed)
            certificate = certificate if why is None else Certificate(False, why)
        found = replace(found, subspace=subspace, certificate=certificate)
        return replace(state, inner=None, found=found, reason=reason, sample=found.sample)

    def done(self, state: RobustState) -> str | None:
        return None if state.found is None or state.sample is None else state.reason

    def result(self, X: Matrix, state: RobustState) -> Subspace:
        assert state.found is not None
        assert state.sample is not None
        if not len(state.sample):
            raise ConvergenceError(f"no row of {X.name} is left to measure the components by")
        return self.concluded(X, replace(state.found, sample=state.sample))

    def concluded(self, X: Matrix, found: Found) -> Subspace:
        """The subspace with cut-offs of the scores and the certificate in its provenance."""
        subspace, sample = replace(found.subspace, features=X.features), found.sample
        assert sample is not None
        if not found.measured:
            subspace, sample = measured(subspace, sample)
        cutoffs = cutoffs_of(subspace, sample)
        fraction, certificate = found.removed, found.certificate
        if fraction is None:
            fraction = float((scores_of(subspace, sample, cutoffs) > 1).mean())
        # Of normal data one in twenty is flagged; 1.5 eps, as some that do not lie are taken for those that do.
        if found.judges_rows and fraction > 1.5 * self.options.eps + 1.5 * 2 * (1 - LEVEL) + 2 / np.sqrt(len(sample)):
            words = f"{100 * fraction:.2g} % of the rows lie beyond the cut-offs, more than eps={self.options.eps:g}"
            certificate = Certificate(False, f"{words} promises; {certificate.text}")
        story = {
            "method": self.method.name,
            "eps": float(self.options.eps),
            "outlier_fraction": float(fraction),
            "certificate": {"holds": bool(certificate.holds), "text": certificate.text},
            **cutoffs,
            "map": _map(subspace, sample if found.cut is None else np.vstack([sample, found.cut])),
        }
        cuts = written_cuts(Sieve((*found.sieve.cuts, *found.suspected.cuts)))
        kept = {} if cuts is None else {"cuts": cuts}
        return replace(subspace, provenance={**subspace.provenance, "robust": story, **kept})

    def _surveyed(self) -> bool:
        o = self.options
        return (
            self.method.surveyed()
            or o.scale is not None
            or isinstance(o.center, str)
            or self.options.missing != "error"
        )

    def _begun(self, X: Matrix, start: Start) -> RobustState:
        if start.sample is not None and start.whole and len(start.sample):
            rows = np.nan_to_num(start.sample)
            if not np.ptp(rows, axis=0).any():
                raise InputError(f"the rows of {X.name} are all the same: there is no direction in which they vary")
            with np.errstate(over="ignore"):
                check_energy(float(np.square(rows - rows[0]).sum()))
        seen = self._seen(X, start)
        return RobustState(start, self.method.begin(seen, start, self._maps(start)))

    def _maps(self, start: Start) -> tuple[RowMap, ...]:
        return () if start.fill is None else (Filled(start.fill),)

    def _seen(self, X: Matrix, start: Start) -> Matrix:
        """The matrix as the method sees it: without names, as a state is made of numbers, and a robust scale is one
        with the weights of the features."""
        X = replace(X, features=Labels.plain("feature", X.shape[1]))
        if start.scale is None:
            return X
        weights = np.nan_to_num(1 / start.scale, nan=1.0)
        return replace(X, weights=weights if X.weights is None else X.weights * weights)


def _map(subspace: Subspace, sample: np.ndarray) -> list[list[float]]:
    """Score distances and orthogonal distances of some rows, of all kinds, for the picture in a report."""
    some = sample[np.linspace(0, len(sample) - 1, min(len(sample), _MAPPED)).astype(int)]
    return [[float(f"{x:.4g}") for x in pair] for pair in distances_of(subspace, some)]


def measured(subspace: Subspace, sample: np.ndarray) -> tuple[Subspace, np.ndarray]:
    """Variances along the components by the median absolute deviation of a sample of scores, largest first."""
    scores, k = sample[:, :-1], subspace.k
    _, spread = center_and_spread(scores)
    deviation = scores.std(axis=0)
    spread = np.where(spread > 1e-9 * deviation, spread, deviation)
    order = np.argsort(-spread, kind="stable")
    near = np.quantile(np.square(sample[:, -1]), 0.9)
    rest = np.square(sample[:, -1])
    outside = float(rest[rest <= near].mean()) if len(rest) else 0.0
    components, bounds = subspace.components[order], subspace.angle_bounds
    if (order != np.arange(k)).any():
        bounds = np.append(np.full(k - 1, np.pi / 2), bounds[-1:])
    found = replace(
        subspace,
        components=components,
        singular_values=spread[order] * np.sqrt(max(subspace.dof, 1.0)),
        residual=subspace.residual[order],
        angle_bounds=bounds,
        total_variance=float(np.square(spread).sum()) + outside,
    )
    return found, np.column_stack([scores[:, order], sample[:, -1]])


def cutoffs_of(subspace: Subspace, sample: np.ndarray) -> dict[str, float]:
    """Cut-offs of score distances and orthogonal distances: what 97.5 % of normal data lie within."""
    rounding = float(np.sqrt(np.finfo(subspace.components.dtype).eps) * np.sqrt(max(subspace.total_variance, 0.0)))
    return {
        "score_cutoff": float(np.sqrt(chi2.ppf(LEVEL, subspace.k))),
        "orthogonal_cutoff": float(max(tail_cutoff(sample[:, -1], LEVEL), 1e-2 * rounding, np.finfo(float).tiny)),
    }


def scores_of(subspace: Subspace, sample: np.ndarray, cutoffs: dict[str, float]) -> np.ndarray:
    """(m,) the larger of score distance and orthogonal distance, each over its cut-off."""
    return np.max(distances_of(subspace, sample) / [cutoffs["score_cutoff"], cutoffs["orthogonal_cutoff"]], axis=1)


def distances_of(subspace: Subspace, sample: np.ndarray) -> np.ndarray:
    """(m, 2) score distances, in standard deviations, and orthogonal distances, in weighted, scaled units."""
    spread = np.sqrt(subspace.explained_variance)
    floor = 1e-9 * float(spread.max(initial=0.0)) or 1.0
    score = np.sqrt(np.square(sample[:, :-1] / np.maximum(spread, floor)).sum(axis=1))
    return np.column_stack([score, sample[:, -1]])


def check_eps(eps: Any) -> float:
    """The outlier fraction as a float; raises InputError where it is none below one half."""
    if isinstance(eps, bool) or not isinstance(eps, int | float | np.number) or not 0 <= eps < 0.5:
        raise InputError(f"eps={eps!r}: give the share of the rows that may lie, from 0 and below 0.5")
    return float(eps)
