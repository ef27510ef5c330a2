"""`randomized`: shifted subspace iteration with one pass an iteration, along the longer side of the matrix.

Each pass multiplies the second-moment operator C with an orthonormal Q. Rayleigh-Ritz on that product gives the answer
so far and, with no other pass, its certificate; the next Q spans (C - a I) Q, where the shift a, at most half the
smallest Ritz value, speeds convergence up (Feng, Yu, Xie and Tang 2024). A few probe columns that are independent of Q,
deflated by it, bound what lies outside of it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from pipeline.folds import ColumnFactor, ColumnProduct, Products, RowProduct
from pipeline.folds.columns import Dual, Factor
from pipeline.kernels.blocks import spread_of
from pipeline.kernels.certificate import norm_from_probes, sine_bounds
from pipeline.kernels.linalg import eigh_descending, orthonormal
from pipeline.matrix import Matrix
from pipeline.solvers.dual_gram import factored, right_sines, standard
from pipeline.solvers.gram import gram_rounding
from pipeline.solvers.solver import COMPLETE, CONVERGED, LIMIT, NO_GAP, STALLED, Answer, Cost, Settings
from pipeline.sources import COLUMNS, ROWS
from pipeline.subspace import Subspace

__all__ = ["Randomized"]

_PROBES = 8
_PASSES = 8  # without a tol


@dataclass(frozen=True)
class RandomizedState:
    """What the next pass needs: Q (m, l), probes (m, r) with their history, and the Ritz pairs of the last."""

    passes: int
    dtype: Any
    basis: np.ndarray
    probes: np.ndarray
    probe_size: np.ndarray
    probe_powers: int
    theta: np.ndarray | None = None
    ritz: np.ndarray | None = None
    residual: np.ndarray | None = None
    sines: np.ndarray | None = None
    rank: int = 0
    rounding: float = 0.0
    history: tuple[float, ...] = ()
    n: float = 0.0
    spread: float = 0.0
    mean: np.ndarray | None = None
    scale: np.ndarray | None = None
    reason: str | None = None
    factor: Factor | None = None


@dataclass(frozen=True)
class Applied:
    """C Q as a solver sees it, whichever side was walked: the product (m, l + r), sums of squares and rounding."""

    product: np.ndarray
    spread: float
    energy: float
    rounding: float
    n: float
    present: int
    state: RandomizedState


@dataclass(frozen=True)
class Randomized:
    """Leading eigenvectors of Z^T Z (walking rows) or Z Z^T (walking columns)."""

    settings: Settings
    side: int = ROWS
    n_oversamples: int | None = None
    name: ClassVar[str] = "randomized"

    def width(self, X: Matrix) -> int:
        """Columns of the basis: more than asked for, since the extra ones cost little beside the reading."""
        rank, short = self.settings.rank, min(X.shape)
        k = rank.most(*X.shape) if not rank.open else min(32, short)
        extra = self.n_oversamples if self.n_oversamples is not None else max(16, k // 2)
        return min(k + extra, short)

    def cost(self, X: Matrix) -> Cost:
        n, d = X.shape
        l, m = self.width(X) + _PROBES, X.shape[1 - self.side]
        long = 0 if self.side == ROWS else 8 * 3 * d * l
        passes = self._effort(X) + (self.side == COLUMNS)
        return Cost(passes, self.side, 8 * m * l, X.work_dtype.itemsize * m * l, 8 * 8 * m * l + long, 4.0 * n * d * l)

    def _effort(self, X: Matrix) -> int:
        """Passes without a tol; two are exact where the basis holds every direction."""
        return 2 if self.width(X) == min(X.shape) else _PASSES

    def init(self, X: Matrix) -> RandomizedState:
        self.settings.rank.most(*X.shape)
        rng, m = np.random.default_rng(self.settings.seed), X.shape[1 - self.side]
        basis = orthonormal(rng.standard_normal((m, self.width(X))))
        return RandomizedState(0, X.work_dtype, basis, np.zeros((m, 0)), np.zeros((0, 0)), 0)

    def fold(self, X: Matrix, state: RandomizedState) -> Any:
        dtype = np.dtype(state.dtype)
        if state.reason is not None:
            assert state.ritz is not None
            return ColumnFactor(dtype, standard(X, self.settings), state.ritz[:, : state.rank])
        thin = np.hstack([state.basis, state.probes])
        probe = np.random.default_rng([self.settings.seed, state.passes]).standard_normal((thin.shape[1],))
        if self.side == COLUMNS:
            return ColumnProduct(dtype, standard(X, self.settings), probe, thin)
        return RowProduct(dtype, _factor(X, state)[:, None] * thin, state.passes == 0, probe, X.sample_weights)

    def step(self, X: Matrix, state: RandomizedState, summary: Any) -> RandomizedState:
        if isinstance(summary, Factor):
            return replace(state, passes=state.passes + 1, factor=summary)
        first = state.passes == 0
        applied = self._rows(X, state, summary) if self.side == ROWS else self._columns(X, state, summary)
        state = replace(applied.state, passes=state.passes + 1, n=applied.n, spread=applied.spread)
        if first and self.side == ROWS and self.settings.scale is not None:
            # The spread became known in this pass: its product is of other units than its basis, and still a start.
            return replace(state, basis=orthonormal(applied.product))
        return self._decide(X, self._ritz(X, state, applied))

    def done(self, state: RandomizedState) -> str | None:
        if state.reason is None or (self.side == COLUMNS and state.factor is None):
            return None
        return state.reason

    def result(self, X: Matrix, state: RandomizedState) -> Subspace:
        if self.side == COLUMNS:
            return factored(X, state, self.settings)
        assert state.ritz is not None
        assert state.theta is not None
        assert state.mean is not None
        assert state.residual is not None
        assert state.sines is not None
        k, dof = state.rank, max(state.n - 1.0, 0.0) if self.settings.center else state.n
        return Answer(
            state.ritz[:, :k],
            np.sqrt(np.maximum(state.theta[:k], 0.0)),
            state.mean,
            state.scale,
            state.n,
            state.spread / dof if dof else 0.0,
            state.residual,
            state.sines,
            state.passes,
        ).subspace(X, self.settings)

    def _rows(self, X: Matrix, state: RandomizedState, summary: Products) -> Applied:
        s, thin = self.settings, np.hstack([state.basis, state.probes])
        lens = _factor(X, state)[:, None] * thin
        sums = summary.centred(lens)
        n, mean, present = sums.n, sums.mean, ~sums.absent
        nan = np.where(present, 1.0, np.nan)
        if state.passes == 0:
            scale = spread_of(s.scale, sums.squares / n, mean) * nan if s.scale else None
            state = replace(state, mean=mean * nan, scale=scale)
        factor = _factor(X, state) * present
        spread = float(factor**2 @ sums.squares) if state.passes == 0 else state.spread
        product = factor[:, None] * sums.product.T
        middle = np.sqrt(n) * mean * factor
        if not s.center:
            product += np.outer(middle, np.sqrt(n) * (mean @ lens))
        energy = spread if s.center else spread + float(middle @ middle)
        return Applied(product, spread, energy, sums.rounding.norm(factor), n, int(present.sum()), state)

    def _columns(self, X: Matrix, state: RandomizedState, summary: Dual) -> Applied:
        n = float(X.shape[0] if X.sample_weights is None else X.sample_weights.sum())
        rounding = summary.rounding.norm(np.ones(X.shape[0]))
        return Applied(summary.product, summary.squares, summary.energy, rounding, n, summary.present, state)

    def _ritz(self, X: Matrix, state: RandomizedState, applied: Applied) -> RandomizedState:
        """Rayleigh-Ritz and the certificate from C Q; the next basis."""
        q, l = state.basis, state.basis.shape[1]
        product = applied.product[:, :l]
        inner = q.T @ product
        theta, turn = eigh_descending((inner + inner.T) / 2)
        ritz, image = q @ turn, product @ turn
        leak = image - ritz @ (ritz.T @ image)
        rounding = applied.rounding + gram_rounding(
            state.dtype, applied.energy, float(theta[0]), X.block_height, X.shape[1 - self.side]
        )
        k = self.settings.rank.resolve(np.maximum(theta, 0.0), applied.energy, X.shape[0], applied.present)
        if k > l - min(8, l // 4) and l < min(X.shape):  # more are wanted than the basis holds: widen it
            more = np.random.default_rng([self.settings.seed, l]).standard_normal(
                (q.shape[0], min(l, min(X.shape) - l))
            )
            if state.mean is not None:
                more *= np.isfinite(state.mean)[:, None]
            wider = orthonormal(np.hstack([image, more]))
            return replace(state, basis=wider, probes=state.probes[:, :0], probe_powers=0, theta=None, sines=None)
        k = min(k, l)
        probes, size, powers, outside = self._outside(X, state, applied, theta)
        sines = sine_bounds(theta, leak.T @ leak, outside, rounding, k)
        if self.side == COLUMNS:
            sines = right_sines(sines, theta[:k], float(theta[0]), state.dtype)
        floor = max(np.finfo(float).eps * float(theta[0]), np.finfo(float).tiny)
        sizes = np.linalg.norm(leak[:, :k], axis=0) + rounding
        # Not in the first pass: its basis is random, also at features that have no values.
        shift = max(float(theta[-1]), 0.0) / 2 if state.passes > 1 else 0.0
        return replace(
            state,
            basis=orthonormal(image - shift * ritz),
            probes=probes,
            probe_size=size,
            probe_powers=powers,
            theta=theta,
            ritz=ritz,
            rank=k,
            residual=sizes / np.maximum(theta[:k], floor),
            sines=sines,
            rounding=rounding,
            history=(*state.history, float(np.linalg.norm(leak[:, :k]))),
        )

    def _outside(
        self, X: Matrix, state: RandomizedState, applied: Applied, theta: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, int, float]:
        """A bound on the norm of what Q leaves of C, and the probes that will sharpen it in the next pass."""
        q, l = state.basis, state.basis.shape[1]
        if l >= min(min(X.shape), applied.present):
            return state.probes, state.probe_size, 0, -np.inf if l >= q.shape[0] else 0.0
        left = max(applied.energy - float(theta.sum()), 0.0) + 1e-14 * applied.energy
        if state.probes.shape[1] == 0:  # start now: a random Q of the first pass would hide part of what is outside
            rng = np.random.default_rng([self.settings.seed, 1, state.passes])
            start = rng.standard_normal((q.shape[0], _PROBES))
            basis, size = np.linalg.qr(start)
            return basis, size, 0, left
        image = applied.product[:, l:]
        image = image - q @ (q.T @ image)
        basis, size = np.linalg.qr(image)
        size, powers = size @ state.probe_size, state.probe_powers + 1
        bound = norm_from_probes(float(np.linalg.norm(size)), _PROBES, powers)
        return basis, size, powers, min(left, bound)

    def _decide(self, X: Matrix, state: RandomizedState) -> RandomizedState:
        """Go on, or stop with a reason; float32 that stands in the way of tol is left for float64."""
        tol = self.settings.tol
        if state.sines is None or state.theta is None:
            return replace(state, reason=LIMIT) if state.passes >= self.settings.max_passes else state
        if tol is None:
            return replace(state, reason=COMPLETE) if state.passes >= self._effort(X) else state
        if state.sines[-1] <= tol:
            return replace(state, reason=CONVERGED)
        if state.passes >= self.settings.max_passes:
            return replace(state, reason=LIMIT)
        k, theta = state.rank, state.theta
        following = float(theta[k]) if theta.size > k else 0.0
        gap = float(theta[k - 1]) - following
        stuck = len(state.history) > 4 and state.history[-1] > 0.9 * state.history[-4]
        if 2 * state.rounding >= tol * gap or stuck:
            if state.dtype == np.float32:
                return replace(state, dtype=np.dtype(np.float64), history=())
            if gap <= 1e-9 * max(float(theta[k - 1]), np.finfo(float).tiny) or state.rounding >= gap:
                return replace(state, reason=NO_GAP) if len(state.history) > 4 else state
            return replace(state, reason=STALLED) if stuck else state
        return state


def _factor(X: Matrix, state: RandomizedState) -> np.ndarray:
    """(d,) weights / scale as far as the scale is known."""
    factor = np.ones(X.shape[1]) if X.weights is None else X.weights
    return factor if state.scale is None else np.nan_to_num(factor / state.scale)
