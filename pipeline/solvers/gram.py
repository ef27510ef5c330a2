"""`gram`: one pass of second moments, then an eigendecomposition; exact, for features that fit a square matrix."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from pipeline.folds import Moments, RowMoments
from pipeline.kernels.blocks import check_energy, doubled, single, spread_of
from pipeline.kernels.certificate import sine_bounds
from pipeline.kernels.linalg import eigh_descending
from pipeline.kernels.rounding import rounding_probes
from pipeline.matrix import Matrix
from pipeline.solvers.solver import COMPLETE, CONVERGED, NO_GAP, STALLED, Answer, Cost, Settings, unit_roundoff
from pipeline.sources import ROWS
from pipeline.sources.stream import Stream
from pipeline.subspace import Subspace

__all__ = ["Gram", "exact_sines", "gram_rounding", "unmet"]


@dataclass(frozen=True)
class GramState:
    """Passes so far, the precision of the next one, the answer of the last, and why it is the last."""

    passes: int
    dtype: Any
    answer: Answer | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Gram:
    """Eigenvectors of D (sum of (x - mean)(x - mean)^T) D, D = diag(weights / scale)."""

    settings: Settings
    name: ClassVar[str] = "gram"
    exact: ClassVar[bool] = True

    def cost(self, X: Matrix) -> Cost:
        n, d = X.shape
        return Cost(1, ROWS, 8 * d * d, X.block_dtype.itemsize * d * d, 8 * 4 * d * d, 1.0 * n * d * d)

    def init(self, X: Matrix) -> GramState:
        self.settings.rank.most(*X.shape)
        once = isinstance(X.source, Stream)  # no second pass where float32 products stand in the way of tol
        return GramState(0, doubled(X.dtype) if once and self.settings.tol is not None else X.block_dtype)

    def fold(self, X: Matrix, state: GramState) -> RowMoments:
        probes = rounding_probes(X.shape[1], self.settings.seed)
        probes = probes if X.weights is None else probes * X.weights[:, None]
        return RowMoments(np.dtype(state.dtype), probes, self.settings.scale, X.sample_weights)

    def step(self, X: Matrix, state: GramState, summary: Moments) -> GramState:
        answer, tol = self._solve(X, state, summary.centred()), self.settings.tol
        state = replace(state, passes=state.passes + 1, answer=answer)
        if tol is None:
            return replace(state, reason=COMPLETE)
        if answer.sines[-1] <= tol:
            return replace(state, reason=CONVERGED)
        if single(state.dtype):  # once more: float32 products stood in the way
            return replace(state, dtype=doubled(state.dtype))
        return replace(state, reason=unmet(answer.sines))

    def done(self, state: GramState) -> str | None:
        return state.reason

    def result(self, X: Matrix, state: GramState) -> Subspace:
        assert state.answer is not None
        return state.answer.subspace(X, self.settings)

    def _solve(self, X: Matrix, state: GramState, moments: Moments) -> Answer:
        s, about = self.settings, moments.about
        n, mean, present = about.n, about.mean, ~about.absent
        s.rank.most(moments.rows, int(present.sum()))
        variance = np.maximum(np.diag(moments.scatter).real, 0.0) / n if n else np.zeros(X.shape[1])
        scale = spread_of(s.scale, variance, mean) if s.scale else None
        factor = np.ones(X.shape[1]) if X.weights is None else X.weights
        factor = (factor if scale is None else factor / scale)[present]
        z = moments.scatter if present.all() else moments.scatter[np.ix_(present, present)]
        z = z * factor[:, None] * factor
        spread = float(np.trace(z).real)
        if not s.center:
            middle = np.sqrt(n) * mean[present] * factor
            z += np.outer(middle.conj(), middle)
        values, vectors = eigh_descending(z, s.rank.known(moments.rows, int(present.sum())))
        energy = float(np.trace(z).real)
        check_energy(energy)
        k = s.rank.resolve(np.maximum(values, 0.0), energy, moments.rows, int(present.sum()))
        loud = energy + float(factor**2 @ moments.energy[present])
        rounding = gram_rounding(state.dtype, loud, float(values[0]), X.block_height, z.shape[0])
        whole = np.zeros(X.shape[1])
        whole[present] = factor
        rounding += moments.rounding.norm(whole)
        theta, v = values[:k], vectors[:, :k]
        residual = np.linalg.norm(z @ v - v * theta, axis=0) + rounding
        components = np.zeros((X.shape[1], k), v.dtype)
        components[present] = v
        nan = np.where(present, 1.0, np.nan)
        dof = max(n - 1.0, 0.0) if s.center else n
        floor = max(np.finfo(float).eps * float(values[0]), np.finfo(float).tiny)
        with np.errstate(over="ignore"):  # nothing is known of the directions of what has no variance
            residual = np.minimum(residual / np.maximum(theta, floor), np.finfo(float).max)
        return Answer(
            components,
            np.sqrt(np.maximum(theta, 0.0)),
            mean * nan,
            None if scale is None else scale * nan,
            n,
            spread / dof if dof else 0.0,
            residual,
            exact_sines(values, rounding, k),
            state.passes + 1,
        )


def unmet(sines: np.ndarray) -> str:
    """Why an exact solver does not meet a tol: rounding, or no gap at all."""
    return NO_GAP if sines[-1] >= 0.1 else STALLED


def exact_sines(values: np.ndarray, rounding: float, k: int, outside: float = -np.inf) -> np.ndarray:
    """Sine bounds (k,) if all eigenvalues are known but those `outside`: what rounding may have turned over the gap."""
    left = float(values[k]) if values.size > k else outside
    return sine_bounds(values[:k], np.zeros((k, k)), left, rounding, k)


def gram_rounding(dtype: Any, energy: float, largest: float, height: int, width: int) -> float:
    """Bound on the spectral norm of the rounding errors in Z^T Z, those of float32 products (measured) apart.

    Sums of m terms go wrong by sqrt(m) roundoffs (Higham and Mary 2019), entries by one.
    """
    growth = 10.0 + np.sqrt(height) + np.sqrt(width)
    entries = unit_roundoff(dtype) * np.sqrt(energy) * np.sqrt(max(largest, 0.0))
    return float(growth * unit_roundoff(np.float64) * energy + entries)
