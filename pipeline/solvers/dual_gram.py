"""`dual_gram`: the Gram matrix of few samples with very many features, then one pass more for the components; exact."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from pipeline.folds import ColumnFactor, ColumnProduct, Standard
from pipeline.folds.columns import Dual, Factor
from pipeline.kernels.blocks import SHORT, check_energy, doubled, single
from pipeline.kernels.linalg import eigh_descending
from pipeline.kernels.rounding import rounding_probes
from pipeline.matrix import Matrix
from pipeline.solvers.gram import exact_sines, gram_rounding, unmet
from pipeline.solvers.solver import COMPLETE, CONVERGED, Answer, Cost, Settings
from pipeline.sources import COLUMNS
from pipeline.subspace import Subspace

__all__ = ["DualGram", "factored", "standard"]


@dataclass(frozen=True)
class DualState:
    """Passes so far, precision, the left vectors (n, k) and what is known of them, and the long factor at the end."""

    passes: int
    dtype: Any
    left: np.ndarray | None = None
    squares: np.ndarray | None = None
    residual: np.ndarray | None = None
    sines: np.ndarray | None = None
    spread: float = 0.0
    factor: Factor | None = None


@dataclass(frozen=True)
class DualGram:
    """Eigenvectors U of Z Z^T (n x n), then V = Z^T U / s: two walks over blocks of whole columns."""

    settings: Settings
    name: ClassVar[str] = "dual_gram"
    exact: ClassVar[bool] = True

    def cost(self, X: Matrix) -> Cost:
        n, d = X.shape
        k = self.settings.rank.most(n, d)
        square, long = 8 * n * n, 8 * 5 * d * k  # its parts, the whole, and what becomes of it
        held = 8 * n * k + 8 * 2 * d * k  # in the second pass, as the long factor grows
        flops, scratch = 1.0 * n * n * d, X.block_dtype.itemsize * n * n
        return Cost(2, COLUMNS, square, scratch, 4 * square + long, flops, state_bytes=held)

    def init(self, X: Matrix) -> DualState:
        self.settings.rank.most(*X.shape)
        return DualState(0, X.block_dtype)

    def fold(self, X: Matrix, state: DualState) -> ColumnProduct | ColumnFactor:
        if state.left is not None:
            return ColumnFactor(np.dtype(state.dtype), standard(X, self.settings), state.left)
        probes = rounding_probes(X.shape[0], self.settings.seed)
        return ColumnProduct(np.dtype(state.dtype), standard(X, self.settings), probes)

    def step(self, X: Matrix, state: DualState, summary: Any) -> DualState:
        state = replace(state, passes=state.passes + 1)
        if isinstance(summary, Factor):
            return replace(state, factor=summary)
        dual: Dual = summary
        n, present = X.shape[0], dual.present
        check_energy(dual.energy)
        values, vectors = eigh_descending(dual.product, self.settings.rank.known(n, present))
        k = self.settings.rank.resolve(np.maximum(values, 0.0), dual.energy, n, present)
        largest = float(values[0])
        rounding = gram_rounding(state.dtype, dual.loud, largest, X.T.block_height, n)
        rounding += dual.rounding.norm(np.ones(n))
        left, theta = vectors[:, :k], values[:k]
        sines = right_sines(exact_sines(values, rounding, k, beyond(n, present)), theta, largest, n, state.dtype)
        tol = self.settings.tol
        if tol is not None and sines[-1] > tol and single(state.dtype):
            return replace(state, dtype=doubled(state.dtype))  # once more: float32 products stood in the way
        residual = np.linalg.norm(dual.product @ left - left * theta, axis=0) + rounding
        floor = max(np.finfo(float).eps * largest, np.finfo(float).tiny)
        return replace(
            state,
            left=left,
            squares=theta,
            residual=residual / np.maximum(theta, floor),
            sines=sines,
            spread=dual.squares,
        )

    def done(self, state: DualState) -> str | None:
        if state.factor is None or state.sines is None:
            return None
        tol = self.settings.tol
        if tol is None:
            return COMPLETE
        return CONVERGED if state.sines[-1] <= tol else unmet(state.sines)

    def result(self, X: Matrix, state: DualState) -> Subspace:
        return factored(X, state, self.settings)


def standard(X: Matrix, settings: Settings) -> Standard:
    """How a transposed walk treats the columns of X."""
    return Standard(settings.center, settings.scale, X.weights, X.sample_weights)


def beyond(m: int, present: int) -> float:
    """The largest eigenvalue that vectors of m entries do not show: none, or zero where features are more than that."""
    return 0.0 if present > m else -np.inf


def right_sines(sines: np.ndarray, theta: np.ndarray, largest: float, n: int, dtype: Any) -> np.ndarray:
    """Sine bounds (k,) of V = Z^T U / s from those of U.

    Z^T shrinks what leaks into weaker directions, so tan(V) <= tan(U); rounding in Z^T U is relative to the largest.
    """
    tangent = sines / np.sqrt(np.maximum(1.0 - sines**2, np.finfo(float).tiny))
    noise = _factor_rounding(n, dtype) * np.sqrt(largest) / np.sqrt(np.maximum(theta, np.finfo(float).tiny))
    noise *= np.sqrt(np.arange(1, theta.size + 1))
    return np.minimum(tangent + noise, 1.0)


def right_residuals(residual: np.ndarray, theta: np.ndarray, n: int, dtype: Any) -> np.ndarray:
    """Residuals (k,) of V = Z^T U / s from those of U.

    Made orthogonal to the stronger ones, a component keeps of their errors no more than they have themselves.
    """
    if not theta[0] > 0:
        return residual
    size = np.maximum(theta, np.finfo(float).eps * theta[0]) / theta[0]
    return (np.sqrt(np.cumsum((residual * size) ** 2)) + _factor_rounding(n, dtype)) / size


def _factor_rounding(n: int, dtype: Any) -> float:
    """Rounding of Z^T u, relative to the largest singular value: sums of some terms, and sums of these in float64."""
    return float((4.0 + min(n, SHORT) / 2) * np.finfo(dtype).eps + np.sqrt(n) * np.finfo(np.float64).eps)


def factored(X: Matrix, state: Any, settings: Settings, images: np.ndarray | None = None) -> Subspace:
    """The Subspace of left vectors and the factor of the long side that belongs to them.

    Parameters
    ----------
    X : Matrix
    state : DualState or IterationState
    settings : Settings
    images : (k,) array, optional
        Norms ||Z Z^T u|| of left vectors that are no exact eigenvectors: the norm of a score column is that of Z v for
        v = Z^T u / ||Z^T u||.
    """
    long, mean, scale = state.factor.joined()
    present = np.isfinite(mean)
    values = np.linalg.norm(long, axis=0)
    # Orthonormal up to rounding already; QR mends the rounding, and fills in directions for components of no variance.
    q, r = np.linalg.qr(long if present.all() else long[present])
    turn = np.diag(r)
    q *= np.where(turn == 0, 1.0, turn / np.where(turn == 0, 1.0, np.abs(turn)))
    components = q
    if not present.all():
        components = np.zeros_like(long)
        components[present] = q
    residual, sines = right_residuals(state.residual, values**2, X.shape[0], state.dtype), state.sines
    if images is not None:
        loud = values > 1e-6 * values.max(initial=0.0)
        values = np.divide(images, values, out=values.copy(), where=loud)
        order = np.argsort(-values, kind="stable")
        # Where two change places, the leading ones up to there are others than those that are certified.
        same = np.maximum.accumulate(order) <= np.arange(len(order))
        components, values, residual = components[:, order], values[order], residual[order]
        sines = np.where(same, sines, 1.0)
    n = X.shape[0] if X.sample_weights is None else float(X.sample_weights.sum())
    dof = max(n - 1.0, 0.0) if settings.center else n
    return Answer(
        components,
        values,
        mean,
        scale,
        float(n),
        state.spread / dof if dof else 0.0,
        residual,
        sines,
        state.passes,
    ).subspace(X, settings)
