"""Block Lanczos iteration in narrow blocks: `krylov` where a pass costs products and no reading.

C is Hermitian, so that it takes a block of the basis to that block, the one before it and the next (Golub and Underwood
1977): these three terms say what C does to all of the basis, and images need not be kept. Only exact arithmetic leaves
nothing in earlier blocks: what is found there is taken out (full reorthogonalisation), and counted as an error of C.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
from threadpoolctl import threadpool_limits

from pipeline.kernels.blocks import check_energy, single
from pipeline.kernels.linalg import orthonormal_beside
from pipeline.matrix import Matrix
from pipeline.solvers import extraction
from pipeline.solvers.basis import Basis
from pipeline.solvers.dual_gram import beyond
from pipeline.solvers.gram import gram_rounding
from pipeline.solvers.iteration import Applied, Iteration, IterationState, moved_by
from pipeline.solvers.solver import COMPLETE, Cost, unit_roundoff
from pipeline.sources import ROWS

__all__ = ["Lanczos", "LanczosState"]

_WIDTH = 8  # columns of a block: as many as a sparse product takes at a time
_JOINED = 64  # rows up to which blocks of the basis are joined: BLAS is slow with few
_PRODUCTS = 10  # for two components: where spectra that decay slowly are known to 1e-6
_SETTLED = 1e-7  # error of eigenvalues, as it is foretold, at which no more passes are taken
_ROUNDED = 1e-4  # of the least eigenvalue that is wanted: what rounding to single precision may add up to
_UNITS = 16  # roundoffs of the largest eigenvalue that a pass may well add
_PROBED = 8  # last passes that carry probes, as these cost as much as the block itself


@dataclass(frozen=True)
class LanczosState(IterationState):
    """With all of the basis K, and C K in terms of it."""

    rows: tuple[np.ndarray, ...] = ()
    """K^T: (q_i, m) of it each, since products along rows are the fastest."""
    recurrence: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    """(q + l, q): C K = [K, Q] times this, with the next block Q."""
    values: np.ndarray | None = None
    """Ritz values (q,) of the pass before."""

    @property
    def known(self) -> tuple[np.ndarray, ...]:
        """K, block by block."""
        return tuple(rows.T for rows in self.rows)


@dataclass(frozen=True)
class Lanczos(Iteration):
    """Until eigenvalues have settled, or there are five products a component; no `tol`, no start."""

    name: ClassVar[str] = "krylov"

    def width(self, X: Matrix) -> int:
        return min(_WIDTH, min(X.shape))

    def passes(self, X: Matrix) -> int:
        """As many as make a wide basis, or as fill the space."""
        most = -(-_PRODUCTS * (self.settings.rank.most(*X.shape) + 10) // (2 * _WIDTH))
        return min(most, 1 - (-min(X.shape) // self.width(X)))

    def cost(self, X: Matrix) -> Cost:
        cost, m = super().cost(X), X.shape[1 - self.side]
        basis = 8 * m * (self.passes(X) * self.width(X) + _JOINED)
        drawn = basis + 8 * m * 4 * self.settings.rank.most(*X.shape)
        return replace(cost, client_bytes=cost.client_bytes + drawn, state_bytes=cost.state_bytes + basis)

    def init(self, X: Matrix) -> LanczosState:
        return LanczosState.of(super().init(X))

    def step(self, X: Matrix, state: IterationState, summary: Any) -> IterationState:
        # Threads of BLAS wait busily for some time after a product, and short passes would wait for them.
        with threadpool_limits(1):
            return super().step(X, state, summary)

    def settled(self, X: Matrix, state: IterationState) -> bool:
        return _error(state.history) <= _SETTLED

    def _multiplied(self, X: Matrix, state: IterationState, applied: Applied) -> IterationState:
        assert isinstance(state, LanczosState)
        check_energy(applied.energy)
        l = state.basis.block.shape[1]
        state, beyond = _recurred(state, np.ascontiguousarray(applied.product[:, :l]))
        state = self._watched(X, state)
        q = state.recurrence.shape[1]
        width = min(l, min(min(X.shape), applied.present) - q)
        state = self._following(state, beyond, max(width, 0), applied.rounding)
        last = state.passes >= self.effort(X) or self.settled(X, state) or width <= 0
        if not last:
            state = replace(state, dtype=self._precision(X, state))
        if not (last or self._probing(X, state)):
            return state
        probed = self._probed(state, state.known, applied.product[:, l:])
        return self._drawn(X, replace(state, probes=probed.probes), applied) if last else probed

    def _precision(self, X: Matrix, state: LanczosState) -> np.dtype[Any]:
        """In which the next pass multiplies: as data of single precision is stored, while that costs little."""
        assert state.values is not None
        k = self.settings.rank.most(*X.shape)
        known = state.values.size >= k and self.side == ROWS and X.sample_weights is None
        if not known or not single(X.work_dtype):
            return X.block_dtype
        rounding = state.rounding + _UNITS * unit_roundoff(X.work_dtype) * float(state.values[0])
        return X.work_dtype if rounding <= _ROUNDED * float(state.values[k - 1]) else X.block_dtype

    def _watched(self, X: Matrix, state: LanczosState) -> LanczosState:
        """How far the eigenvalues have moved."""
        k, before = self.settings.rank.most(*X.shape), state.values
        now = np.linalg.eigvalsh(state.recurrence)[::-1]
        moved = np.inf if before is None or before.size <= k else moved_by(before, now, k)
        return replace(state, values=now, moved=moved, history=(*state.history, moved))

    def _following(self, state: LanczosState, beyond: np.ndarray, width: int, rounding: float) -> LanczosState:
        """With the next block: what an image, of that rounding, has outside of the basis."""
        known = state.known
        shares = np.vstack([block.conj().T @ beyond for block in known])
        spare = partial(self.fresh, state, width, 2, state.passes)
        block = orthonormal_beside(known, beyond[:, :width], spare, shares[:, :width])
        q = state.recurrence.shape[1]
        below = np.zeros((width, q), beyond.dtype)
        below[:, q - beyond.shape[1] :] = block.conj().T @ beyond
        return replace(
            state,
            basis=Basis.begun(block),
            recurrence=np.vstack([state.recurrence, below]),
            # Of images of orthonormal blocks, errors add up as their squares.
            rounding=float(np.hypot(state.rounding, rounding + np.linalg.norm(shares))),
        )

    def _probing(self, X: Matrix, state: LanczosState) -> bool:
        """Whether the next pass is to carry probes."""
        # Convergence speeds up: about half the passes that its pace foretells are still to come.
        left = min(self.effort(X) - state.passes, _passes_left(state.history) / 2)
        return bool(state.probes) or left <= _PROBED

    def _drawn(self, X: Matrix, state: LanczosState, applied: Applied) -> IterationState:
        """With the answer."""
        q = state.recurrence.shape[1]
        inner, below = np.split(state.recurrence, [q])
        assert state.values is not None
        top, energy, m = float(state.values[0]), applied.energy, X.shape[1 - self.side]
        # Entries are those that are stored; what products in single precision cost was measured in each pass.
        rounding = state.rounding + gram_rounding(X.block_dtype, applied.loud, top, X.block_height, m)
        unseen = max(energy - float(state.values.sum()), 0.0) + 1e-14 * energy
        outside = beyond(m, applied.present) if q >= m else min(unseen, state.probes.bound())
        k = min(self.settings.rank.resolve(np.maximum(state.values, 0.0), energy, X.shape[0], applied.present), q)
        answer, ritz = extraction.recurrent(state.known, inner, state.basis.block, below, k, outside, rounding)
        state = replace(state, ritz=ritz, rounding=rounding, rows=(), reason=COMPLETE)
        return self._answered(X, state, answer, ritz.theta)

    def _decide(self, X: Matrix, state: IterationState) -> IterationState:
        return state


def _recurred(state: LanczosState, image: np.ndarray) -> tuple[LanczosState, np.ndarray]:
    """With the block and what C does to it, and of its image (m, l) what lies beyond this block and the one before."""
    block, l = state.basis.block, image.shape[1]
    known = state.recurrence if state.rows else np.zeros((l, 0))
    corner = block.conj().T @ image
    corner = (corner + corner.conj().T) / 2
    beyond = image - block @ corner
    if state.rows:
        before = state.rows[-1]
        beyond -= before.T @ known[-l:, -len(before) :].conj().T
    whole = np.hstack([known, np.vstack([known[-l:].conj().T, corner])])
    return replace(state, rows=_joined(state.rows, block.T), recurrence=whole), beyond


def _joined(blocks: tuple[np.ndarray, ...], rows: np.ndarray) -> tuple[np.ndarray, ...]:
    if blocks and len(blocks[-1]) + len(rows) <= _JOINED:
        return *blocks[:-1], np.vstack([blocks[-1], rows])
    return *blocks, np.ascontiguousarray(rows)


def _error(moved: tuple[float, ...]) -> float:
    """Of the eigenvalues, when what they move by falls on at the pace of the last two passes, or faster."""
    if len(moved) < 2 or not np.isfinite(moved[-2]):
        return np.inf
    before, now = moved[-2:]
    return now * min(now / (before - now), 1.0) if now < before else now


def _passes_left(moved: tuple[float, ...]) -> float:
    """How many passes more will settle the eigenvalues, at the pace of the last two."""
    if len(moved) < 3 or not np.isfinite(moved[-3]) or _error(moved) <= _SETTLED:
        return np.inf
    pace = np.log(max(moved[-3] / moved[-1], 1.1)) / 2
    return float(np.log(_error(moved) / _SETTLED) / pace)
