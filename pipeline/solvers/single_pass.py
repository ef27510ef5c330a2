"""`single_pass`: one reading of the data, and of a stream that cannot be read again.

A block of whole rows X gives X^T (X R) for a random R (d, l): range and co-range of the matrix are sketched in one
product. Its Nystrom approximation is the projection of the matrix on the range of X R, as good as that of the two-pass
randomized SVD of Halko, Martinsson and Tropp (2011), and better than three-sketch methods for streams of entries.
A sketch Theta X with random signs, independent of R, gives the unbiased a-posteriori error estimate of Tropp,
Yurtsever, Udell and Cevher (2019, section 6). Blocks of whole columns give Z (Z^T R) and Z^T R itself, from which left
and right vectors both follow.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from pipeline.errors import InputError
from pipeline.folds.sketches import ColumnSketch, ColumnSketches, RowSketch, RowSketches
from pipeline.kernels.blocks import check_energy
from pipeline.kernels.certificate import sines_of
from pipeline.kernels.linalg import eigh_descending
from pipeline.kernels.signs import signs
from pipeline.matrix import Matrix
from pipeline.solvers import extraction
from pipeline.solvers.gram import gram_rounding
from pipeline.solvers.iteration import Iteration, IterationState
from pipeline.solvers.solver import COMPLETE, CONVERGED, LIMIT, Cost
from pipeline.sources import COLUMNS, ROWS
from pipeline.subspace import Subspace

__all__ = ["SinglePass"]

_SIGNED = 16  # rows of the error sketch
_ALL, _SOON = 512, 1 << 31  # of the shorter side, and multiplications, up to which a sketch holds every direction
_LEAST = 128  # columns of the sketch: extra ones are all that a single pass has in the place of iterations


@dataclass(frozen=True)
class SketchState(IterationState):
    """With Frobenius norms estimated by the sketch of signs: of the matrix, and of what the components leave of it."""

    norm: float = 0.0
    error: float = 0.0


@dataclass(frozen=True)
class SinglePass(Iteration):
    """Nystrom approximation from one product with a random block, and its error estimate."""

    name: ClassVar[str] = "single_pass"

    def passes(self, X: Matrix) -> int:
        """One."""
        return 1

    def width(self, X: Matrix) -> int:
        """Columns of the sketch: four times what is wanted; all, and exact, where they or the data are few."""
        rank, short = self.settings.rank, min(X.shape)
        if short <= _ALL or X.shape[0] * X.shape[1] * short <= _SOON:
            return short
        k = rank.most(*X.shape) if not rank.open else min(2 * _LEAST, short)
        return min(short, max(4 * k, _LEAST) if not rank.open else 2 * _LEAST)

    def cost(self, X: Matrix) -> Cost:
        n, d = X.shape
        l, m = self.width(X), X.shape[1 - self.side]
        sketches = m * (l + _SIGNED) + (d * l if self.side == COLUMNS else 0)
        held = 8 * m * l + 3 * d * l
        flops = 4.0 * n * d * l + 2.0 * n * d * _SIGNED
        scratch, dtype = self.dtype(X).itemsize * m * l, self.dtype(X)
        return Cost(1, self.side, 8 * sketches, scratch, 8 * held, flops, state_bytes=8 * 3 * m * l, dtype=dtype)

    def effort(self, X: Matrix) -> int:
        return 1

    def init(self, X: Matrix) -> SketchState:
        if self.settings.scale is not None and self.side == ROWS:
            raise InputError(
                f"scale={self.settings.scale!r} needs the spread of the features before the rows are sketched, and "
                "single_pass reads them once: take solver='gram', or divide the data beforehand"
            )
        if self.settings.missing != "error":
            raise InputError(
                f"missing={self.settings.missing!r} takes a pass for the means, and single_pass has only one"
            )
        state = Iteration.init(replace(self, settings=replace(self.settings, start=None)), X)
        return SketchState(**{name: getattr(state, name) for name in IterationState.__dataclass_fields__})

    def fold(self, X: Matrix, state: IterationState) -> Any:
        wrap = RowSketch if self.side == ROWS else ColumnSketch
        return wrap(super().fold(X, state), self.settings.seed, _SIGNED)

    def step(self, X: Matrix, state: IterationState, summary: Any) -> IterationState:
        self.settings.rank.most(*X.shape)  # once more: of a stream the length is known only now
        if isinstance(summary, ColumnSketches):
            return self._decide(X, self._columns_sketched(X, state, summary))
        sketches: RowSketches = summary
        state = super().step(X, state, sketches.products)
        assert state.mean is not None
        assert state.left is not None
        factor = (1.0 if X.weights is None else X.weights) * np.isfinite(state.mean)
        centre = np.nan_to_num(state.mean) if self.settings.center else np.zeros(X.shape[1])
        signed = sketches.about(centre) * factor
        return _estimated(state, signed, signed - (signed @ state.left) @ state.left.conj().T)

    def done(self, state: IterationState) -> str | None:
        return state.reason

    def result(self, X: Matrix, state: IterationState) -> Subspace:
        assert isinstance(state, SketchState)
        found = self._answer(X, state)
        estimates = {"error_estimate": state.error, "norm_estimate": state.norm}
        return replace(found, provenance={**found.provenance, **estimates})

    def _chosen(self, X: Matrix, values: np.ndarray, energy: float, present: int) -> int:
        k = self.settings.rank.resolve(values, energy, X.shape[0], present)
        if k > values.size - min(8, values.size // 4) and values.size < min(*X.shape, present):
            raise InputError(
                f"n_components={self.settings.rank.wanted!r} comes to more than the {values.size} columns of a single "
                "pass hold: give a number, or take a solver that may read again"
            )
        return min(k, values.size)

    def _multiplied(self, X: Matrix, state: IterationState, applied: Any) -> IterationState:
        check_energy(applied.energy)
        block = state.basis.block
        products = extraction.Products.of(block, applied.product)
        theta, turn = eigh_descending(products.inner)
        rounding = applied.rounding + gram_rounding(
            state.dtype, applied.loud, float(theta[0]), X.block_height, X.shape[1]
        )
        if theta.size == len(block):  # the sketch holds every direction
            k = self._chosen(X, np.maximum(theta, 0.0), applied.energy, applied.present)
            answer, _ = extraction.rayleigh_ritz(products, theta, turn, k, k, -np.inf, rounding)
            return self._answered(X, state, answer, theta)
        energy = applied.energy
        answer = extraction.nystrom(
            products, lambda values: self._chosen(X, values, energy, applied.present), energy, energy, rounding
        )
        return self._answered(X, state, answer, answer.values)

    def _decide(self, X: Matrix, state: IterationState) -> IterationState:
        assert state.sines is not None
        tol = self.settings.tol
        met = tol is None or state.sines[-1] <= tol
        return replace(state, reason=COMPLETE if tol is None else CONVERGED if met else LIMIT)

    def _columns_sketched(self, X: Matrix, state: IterationState, summary: ColumnSketches) -> IterationState:
        """Right vectors from T = Z^T R and W = Z T, both at hand: the projection of Z on the range of T.

        With T = P S V^T, less what W cannot resolve, Z P = W V S^-1 = U s Y^T and the right vectors are P Y. What is
        left of Z has E = Z (I - P P^T) Z^T; residuals are at most s ||E||^(1/2), and the trace bounds ||E||.
        """
        applied = self._columns(X, summary.dual)
        check_energy(applied.energy)
        long, mean, scale = summary.factor.joined()
        present = np.isfinite(mean)
        rounding = applied.rounding + gram_rounding(
            state.dtype, applied.loud, applied.energy, X.T.block_height, X.shape[0]
        )
        p, sizes, turn = np.linalg.svd(long[present], full_matrices=False)
        kept = int(np.sum(sizes > np.sqrt(2 * rounding) + 1e-8 * sizes[:1].sum()))
        u, values, mix = np.linalg.svd(applied.product @ (turn[:kept].conj().T / sizes[:kept]), full_matrices=False)
        k = self._chosen(X, np.append(values**2, np.zeros(len(sizes) - kept)), applied.energy, applied.present)
        # Directions that are lost in rounding fill up what is wanted, with nothing along them.
        right = np.hstack([p[:, :kept] @ mix.conj().T, p[:, kept:]])[:, :k]
        components = np.zeros((len(present), k), right.dtype)
        components[present] = right
        values, u = np.append(values, np.zeros(k + 1)), np.hstack([u, np.zeros((len(u), k))])
        squares, s = values[:k] ** 2, values[:k]
        shaken = rounding / sizes[kept - 1] if kept else np.sqrt(rounding)
        shaken = 2 * float(values[0]) * shaken + shaken**2 + rounding
        left = max(applied.energy - float(np.sum(values**2)), 0.0) + 1e-14 * applied.energy + (kept + 1) * shaken
        along = np.zeros(k)
        along[0] = s[0] * np.sqrt(left)  # the squares of what is left of all u together are no more than the trace
        floor = max(np.finfo(float).eps * float(squares[0]), np.finfo(float).tiny)
        state = replace(
            state,
            passes=1,
            left=components,
            squares=squares,
            residual=(s * np.sqrt(left) + shaken) / np.maximum(squares, floor),
            sines=sines_of(along, squares, values[1 : k + 1] ** 2 + left, shaken),
            mean=mean,
            scale=scale,
            n=applied.n,
            spread=applied.spread,
        )
        theta = signs(self.settings.seed, 0, X.shape[1], _SIGNED)
        approximation = (u[:, :k] * s) @ (theta @ components.conj()).T
        return _estimated(state, summary.signed.T, (summary.signed - approximation).T)


def _estimated(state: IterationState, whole: np.ndarray, rest: np.ndarray) -> SketchState:
    """With the Frobenius norms of the matrix and of what is left of it, estimated from their sketches (q, m)."""
    norm, error = (float(np.linalg.norm(part) / np.sqrt(len(part))) for part in (whole, rest))
    assert isinstance(state, SketchState)
    return replace(state, norm=norm, error=error)
