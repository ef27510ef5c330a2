"""What the iterative solvers share: one pass an iteration, along either side, and a certificate out of every pass.

A pass multiplies the second-moment operator C with an orthonormal block Q. Rayleigh-Ritz on the products at hand gives
the answer so far and, with no pass more, its certificate; probe columns that are independent of the basis, and deflated
by it, bound what lies outside. What the next block is, and which products are kept, is all that solvers differ in.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from pipeline.folds import ColumnFactor, ColumnProduct, Products, RowProduct
from pipeline.folds.columns import Dual, Factor
from pipeline.kernels.blocks import check_energy, doubled, single, spread_of
from pipeline.kernels.certificate import norm_from_probes, sine_bounds
from pipeline.kernels.linalg import eigh_descending, orthonormal
from pipeline.matrix import Matrix
from pipeline.solvers.dual_gram import factored, right_sines, standard
from pipeline.solvers.gram import gram_rounding
from pipeline.solvers.solver import COMPLETE, CONVERGED, LIMIT, NO_GAP, STALLED, Answer, Cost, Settings
from pipeline.sources import COLUMNS, ROWS
from pipeline.subspace import Subspace

__all__ = ["Basis", "Iteration", "IterationState", "Ritz"]

_PROBES = 8


@dataclass(frozen=True)
class Ritz:
    """Ritz values (p,), vectors (m, p), their images C v (m, p), and the part of those outside of the basis (m, p)."""

    theta: np.ndarray
    vectors: np.ndarray
    images: np.ndarray
    leak: np.ndarray


@dataclass(frozen=True)
class Basis:
    """Directions whose images are known, both (m, q), and the orthonormal block (m, l) that is multiplied next."""

    known: np.ndarray
    images: np.ndarray
    block: np.ndarray


@dataclass(frozen=True)
class IterationState:
    """What the next pass needs, and the answer of the last."""

    passes: int
    dtype: Any
    basis: Basis
    probes: np.ndarray
    probe_size: np.ndarray
    probe_log: float
    probe_powers: int
    ritz: Ritz | None = None
    residual: np.ndarray | None = None
    sines: np.ndarray | None = None
    rank: int = 0
    rounding: float = 0.0
    history: tuple[float, ...] = ()
    n: float = 0.0
    spread: float = 0.0
    loud: float = 0.0
    mean: np.ndarray | None = None
    scale: np.ndarray | None = None
    reason: str | None = None
    factor: Factor | None = None


@dataclass(frozen=True)
class _Applied:
    """C Q whichever side was walked: the product (m, l + r), sums of squares, rounding, weight, columns with values.

    `loud` is the sum of squares as it was accumulated: what rounding errors are relative to.
    """

    product: np.ndarray
    spread: float
    energy: float
    loud: float
    rounding: float
    n: float
    present: int


@dataclass(frozen=True)
class Iteration:
    """Base of the solvers for leading eigenvectors of Z^T Z (walking rows) or Z Z^T (walking columns)."""

    settings: Settings
    side: int = ROWS
    n_oversamples: int | None = None
    name: ClassVar[str]
    exact: ClassVar[bool] = False
    blocks_held: ClassVar[int]
    """Blocks of vectors that the driver holds at most, beside the products of a pass."""

    def advance(self, state: IterationState, ritz: Ritz, image: np.ndarray, most: int) -> Basis:
        """The next block and what is known beside it.

        Parameters
        ----------
        state : IterationState
            With the basis of the pass that has just ended.
        ritz : Ritz
            Of all that is known.
        image : (m, l) array
            C times the block of that pass.
        most : int
            Dimension of the space that there is.
        """
        raise NotImplementedError

    def passes(self, X: Matrix) -> int:
        """Passes without a tol."""
        raise NotImplementedError

    def width(self, X: Matrix) -> int:
        """Columns of a block: more than asked for, since the extra ones cost little beside the reading."""
        rank, short = self.settings.rank, min(X.shape)
        k = rank.most(*X.shape) if not rank.open else min(32, short)
        extra = self.n_oversamples if self.n_oversamples is not None else max(16, k // 2)
        return min(k + extra, short)

    def cost(self, X: Matrix) -> Cost:
        n, d = X.shape
        l, m = self.width(X) + _PROBES, X.shape[1 - self.side]
        long = 0 if self.side == ROWS else 8 * 3 * d * l
        passes = self.passes(X) + (self.side == COLUMNS)
        held = 8 * self.blocks_held * m * l
        return Cost(passes, self.side, 8 * m * l, X.work_dtype.itemsize * m * l, held + long, 4.0 * n * d * l)

    def init(self, X: Matrix) -> IterationState:
        self.settings.rank.most(*X.shape)
        rng, m = np.random.default_rng(self.settings.seed), X.shape[1 - self.side]
        none = np.zeros((m, 0))
        basis = Basis(none, none, orthonormal(rng.standard_normal((m, self.width(X)))))
        return IterationState(0, X.block_dtype, basis, none, np.zeros((0, 0)), 0.0, 0)

    def fold(self, X: Matrix, state: IterationState) -> Any:
        dtype = np.dtype(state.dtype)
        if state.reason is not None:
            assert state.ritz is not None
            return ColumnFactor(dtype, standard(X, self.settings), state.ritz.vectors[:, : state.rank])
        thin = np.hstack([state.basis.block, state.probes])
        probe = np.random.default_rng([self.settings.seed, state.passes]).standard_normal((thin.shape[1],))
        if self.side == COLUMNS:
            return ColumnProduct(dtype, standard(X, self.settings), probe, thin)
        return RowProduct(dtype, _factor(X, state)[:, None] * thin, state.passes == 0, probe, X.sample_weights)

    def step(self, X: Matrix, state: IterationState, summary: Any) -> IterationState:
        if isinstance(summary, Factor):
            return replace(state, passes=state.passes + 1, factor=summary)
        first = state.passes == 0
        if self.side == ROWS:
            applied, state = self._rows(X, state, summary)
        else:
            applied = self._columns(X, summary)
        state = replace(state, passes=state.passes + 1, n=applied.n, spread=applied.spread, loud=applied.loud)
        if first and self.side == ROWS and self.settings.scale is not None:
            # The spread became known in this pass: its product is of other units than its basis, and still a start.
            return replace(state, basis=replace(state.basis, block=orthonormal(applied.product)))
        return self._decide(X, self._ritz(X, state, applied))

    def done(self, state: IterationState) -> str | None:
        if state.reason is None or (self.side == COLUMNS and state.factor is None):
            return None
        return state.reason

    def result(self, X: Matrix, state: IterationState) -> Subspace:
        ritz, k = state.ritz, state.rank
        assert ritz is not None
        if self.side == COLUMNS:
            return factored(X, state, self.settings)
        assert state.mean is not None
        assert state.residual is not None
        assert state.sines is not None
        dof = max(state.n - 1.0, 0.0) if self.settings.center else state.n
        return Answer(
            ritz.vectors[:, :k],
            np.sqrt(np.maximum(ritz.theta[:k], 0.0)),
            state.mean,
            state.scale,
            state.n,
            state.spread / dof if dof else 0.0,
            state.residual,
            state.sines,
            state.passes,
        ).subspace(X, self.settings)

    def _rows(self, X: Matrix, state: IterationState, summary: Products) -> tuple[_Applied, IterationState]:
        s, thin = self.settings, np.hstack([state.basis.block, state.probes])
        lens = _factor(X, state)[:, None] * thin
        sums = summary.centred(lens)
        n, mean, present = sums.n, sums.mean, ~sums.absent
        if state.passes == 0:
            nan = np.where(present, 1.0, np.nan)
            scale = spread_of(s.scale, sums.squares / n, mean) * nan if s.scale else None
            state = replace(state, mean=mean * nan, scale=scale)
        factor = _factor(X, state) * present
        spread, loud = state.spread, state.loud
        if state.passes == 0:
            spread, loud = float(factor**2 @ sums.squares), float(factor**2 @ sums.energy)
        product = factor[:, None] * sums.product.conj().T
        middle = np.sqrt(n) * mean * factor
        if not s.center:
            product += np.outer(middle.conj(), np.sqrt(n) * (mean @ lens))
        energy = spread if s.center else spread + float(np.vdot(middle, middle).real)
        rounding = sums.rounding.norm(factor)
        return _Applied(product, spread, energy, energy + loud, rounding, n, int(present.sum())), state

    def _columns(self, X: Matrix, summary: Dual) -> _Applied:
        n = float(X.shape[0] if X.sample_weights is None else X.sample_weights.sum())
        rounding = summary.rounding.norm(np.ones(X.shape[0]))
        energy = summary.energy
        return _Applied(summary.product, summary.squares, energy, summary.loud, rounding, n, summary.present)

    def _ritz(self, X: Matrix, state: IterationState, applied: _Applied) -> IterationState:
        """Rayleigh-Ritz and the certificate from the products at hand; the next block."""
        check_energy(applied.energy)
        block, l = state.basis.block, state.basis.block.shape[1]
        whole = np.hstack([state.basis.known, block])
        images = np.hstack([state.basis.images, applied.product[:, :l]])
        inner = whole.conj().T @ images
        theta, turn = eigh_descending((inner + inner.conj().T) / 2)
        images = images @ turn
        leak = images - whole @ (whole.conj().T @ images)
        ritz = Ritz(theta, whole @ turn, images, leak)
        most = min(min(X.shape), applied.present)
        k = self.settings.rank.resolve(np.maximum(theta, 0.0), applied.energy, X.shape[0], applied.present)
        if k > theta.size - min(8, theta.size // 4) and theta.size < most:
            return self._widened(state, ritz, min(theta.size, most - theta.size))
        k = min(k, theta.size)
        rounding = applied.rounding + gram_rounding(
            state.dtype, applied.loud, float(theta[0]), X.block_height, X.shape[1 - self.side]
        )
        state, outside = self._outside(state, whole, applied, theta, most)
        sines = sine_bounds(theta, leak.conj().T @ leak, outside, rounding, k)
        if self.side == COLUMNS:
            sines = right_sines(sines, theta[:k], float(theta[0]), X.shape[0], state.dtype)
        floor = max(np.finfo(float).eps * float(theta[0]), np.finfo(float).tiny)
        sizes = np.linalg.norm(leak[:, :k], axis=0) + rounding
        return replace(
            state,
            basis=self.advance(state, ritz, applied.product[:, :l], most),
            ritz=ritz,
            rank=k,
            residual=sizes / np.maximum(theta[:k], floor),
            sines=sines,
            rounding=rounding,
            history=(*state.history, float(np.linalg.norm(leak[:, :k]))),
        )

    def _widened(self, state: IterationState, ritz: Ritz, more: int) -> IterationState:
        """A wider block, where more components are wanted than the basis can hold."""
        m = ritz.vectors.shape[0]
        fresh = np.random.default_rng([self.settings.seed, ritz.theta.size]).standard_normal((m, more))
        if self.side == ROWS and state.mean is not None:
            fresh *= np.isfinite(state.mean)[:, None]
        none = np.zeros((m, 0))
        basis = Basis(none, none, orthonormal(np.hstack([ritz.images, fresh])))
        return replace(state, basis=basis, probes=none, probe_powers=0, ritz=None, sines=None)

    def _outside(
        self, state: IterationState, whole: np.ndarray, applied: _Applied, theta: np.ndarray, most: int
    ) -> tuple[IterationState, float]:
        """A bound on the norm of what the basis leaves of C; the probes that will sharpen it in the next pass."""
        if theta.size >= most:
            return state, -np.inf if theta.size >= whole.shape[0] else 0.0
        left = max(applied.energy - float(theta.sum()), 0.0) + 1e-14 * applied.energy
        if state.probes.shape[1] == 0:  # only now: a random basis, that of the first pass, would hide a part
            rng = np.random.default_rng([self.settings.seed, 1, state.passes])
            probes, size = np.linalg.qr(rng.standard_normal((whole.shape[0], _PROBES)))
            return replace(state, probes=probes, probe_size=size, probe_log=0.0, probe_powers=0), left
        image = applied.product[:, state.basis.block.shape[1] :]
        probes, size = np.linalg.qr(image - whole @ (whole.conj().T @ image))
        size, powers = size @ state.probe_size, state.probe_powers + 1
        norm = max(float(np.linalg.norm(size)), np.finfo(float).tiny)
        log = state.probe_log + np.log(norm)  # powers of any norm leave the range of numbers sooner or later
        bound = norm_from_probes(log, _PROBES, powers)
        state = replace(state, probes=probes, probe_size=size / norm, probe_log=log, probe_powers=powers)
        return state, min(left, bound)

    def _decide(self, X: Matrix, state: IterationState) -> IterationState:
        """Go on, or stop with a reason; float32 that stands in the way of tol is left for float64."""
        tol, ritz = self.settings.tol, state.ritz
        exhausted = state.passes >= self.settings.max_passes
        if ritz is None or state.sines is None:
            return replace(state, reason=LIMIT) if exhausted else state
        if tol is None:
            return replace(state, reason=COMPLETE) if state.passes >= self.passes(X) else state
        if state.sines[-1] <= tol:
            return replace(state, reason=CONVERGED)
        if exhausted:
            return replace(state, reason=LIMIT)
        last, following = float(ritz.theta[state.rank - 1]), float(ritz.theta[state.rank : state.rank + 1].sum())
        gap = last - following
        full = state.basis.block.shape[1] == 0
        stuck = full or (len(state.history) > 4 and state.history[-1] > 0.9 * state.history[-4])
        if 2 * state.rounding < tol * gap and not stuck:
            return state
        if single(state.dtype):
            return self._in_float64(state)
        if gap <= 1e-9 * last or state.rounding >= gap:
            return replace(state, reason=NO_GAP) if full or len(state.history) > 4 else state
        return replace(state, reason=STALLED) if stuck else state

    def _in_float64(self, state: IterationState) -> IterationState:
        """Begin again in float64 from the best block so far: products made in float32 are no use any more."""
        assert state.ritz is not None
        none = np.zeros((state.ritz.vectors.shape[0], 0))
        width = max(state.basis.block.shape[1], min(state.ritz.theta.size, state.rank + 16))
        basis = Basis(none, none, orthonormal(state.ritz.images[:, :width]))
        return replace(state, dtype=doubled(state.dtype), history=(), basis=basis)


def _factor(X: Matrix, state: IterationState) -> np.ndarray:
    """(d,) weights / scale as far as the scale is known."""
    factor = np.ones(X.shape[1]) if X.weights is None else X.weights
    return factor if state.scale is None else np.nan_to_num(factor / state.scale)
