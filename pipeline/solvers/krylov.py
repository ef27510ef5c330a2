"""`krylov`: randomized block Krylov iteration: the fewest passes; it keeps the products of all of them.

After p passes the basis spans [Q, C Q, …, C^(p-1) Q] (Musco and Musco 2015). When it has grown to its limit it is
restarted from the leading Ritz vectors and their residual (thick restart, Wu and Simon 2000).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from threadpoolctl import threadpool_limits

from pipeline.kernels.linalg import orthonormal_beside
from pipeline.matrix import Matrix
from pipeline.solvers.basis import Basis
from pipeline.solvers.extraction import Ritz
from pipeline.solvers.iteration import Iteration, IterationState, dear, moved_by
from pipeline.sources import ROWS, Operator

__all__ = ["Krylov"]

_BLOCKS = 8
_NARROW = 8  # columns of a narrow block: as many as a sparse product takes at a time
_WIDE, _FEW = 64, 32  # columns of a block up to which BLAS takes hardly longer; components for which it is much wider
_COLUMNS = 10  # products for two components in narrow blocks: where spectra that decay slowly are known to 1e-6
_SETTLED = 1e-7  # change of eigenvalues by a pass over narrow blocks after which no more are taken
_PROBED = 8  # last passes over narrow blocks that carry probes, as these cost as much as the block itself


@dataclass(frozen=True)
class Krylov(Iteration):
    """Block Krylov iteration from a random block.

    Without a `tol` it takes four passes and Nystrom extraction, for a worst eigenvalue error of about 1e-3 on spectra
    that decay slowly; three over blocks of three times as many columns as are asked for, where these are few, which
    reach as far; five passes and Ritz vectors, whose singular values are the norms of their scores to the last
    digit, where a pass costs little. Of data that is not made dense every column of a block costs the same: there are
    fewer of them, and six passes; or, where nothing has to be read for a pass, `narrow` blocks and as many passes as
    it takes, until eigenvalues have settled: the same number of products then reaches much further.
    """

    narrow: bool = False
    name: ClassVar[str] = "krylov"

    def may_be_narrow(self, X: Matrix) -> bool:
        """Whether narrow blocks would serve, if passes cost no reading."""
        s = self.settings
        plain = s.tol is None and s.start is None and not s.rank.open and not self.narrow
        return plain and X.source.implicit and not isinstance(X.source, Operator)

    def may_be_wide(self, X: Matrix) -> bool:
        """Whether blocks can be several times as wide as what is asked for, which saves a pass that costs."""
        rank, dense = self.settings.rank, not X.source.implicit
        return dense and dear(X) and not rank.open and self.n_oversamples is None and rank.most(*X.shape) <= _FEW

    def slender(self, X: Matrix) -> Krylov:
        """The same with blocks that take less memory, and a pass more."""
        return replace(self, n_oversamples=super().width(X) - self.settings.rank.most(*X.shape))

    def width(self, X: Matrix) -> int:
        if self.may_be_wide(X):
            return min(max(_WIDE, 3 * self.settings.rank.most(*X.shape) + 16), min(X.shape))
        return min(_NARROW, min(X.shape)) if self.narrow else super().width(X)

    def passes(self, X: Matrix) -> int:
        """Three to six, or as many narrow blocks as make a wide basis; or as fill the space after the random start."""
        most = 3 if self.may_be_wide(X) else 4 if dear(X) else 6 if X.source.implicit else 5
        if self.narrow:
            most = -(-_COLUMNS * (self.settings.rank.most(*X.shape) + 10) // (2 * _NARROW))
        return min(most, 1 - (-min(X.shape) // self.width(X)))

    def n_blocks(self, X: Matrix) -> int:
        asked = self.settings.tol is not None or self.settings.rank.open
        return _BLOCKS + 1 if asked else self.effort(X)

    def due(self, X: Matrix, state: IterationState) -> bool:
        asked = self.settings.tol is not None or self.settings.rank.open
        return asked or state.passes >= self.effort(X) or self.settled(X, state)

    def watched(self, X: Matrix, state: IterationState, grown: Basis) -> IterationState:
        """Ritz values of narrow blocks, from K^H C K (q, q) that grows with them."""
        if not self.narrow:
            return state
        k, before = self.settings.rank.most(*X.shape), state.inner
        column = np.vstack([block.conj().T @ grown.block for block in grown.known])
        if before is None:
            return replace(state, inner=column)
        above, corner = np.split(column, [len(before)])
        inner = np.block([[before, above], [above.conj().T, corner]])
        was, now = (np.linalg.eigvalsh(a)[::-1] for a in (before, inner))
        moved = moved_by(was, now, k) if was.size > k else np.inf
        return replace(state, inner=inner, moved=moved, history=(*state.history, moved))

    def settled(self, X: Matrix, state: IterationState) -> bool:
        return self.narrow and state.moved <= _SETTLED

    def probing(self, X: Matrix, state: IterationState) -> bool:
        if not self.narrow or state.probes:
            return True
        # Convergence speeds up: about half the passes that its pace foretells are still to come.
        return min(self.effort(X) - state.passes, _passes_left(state.history) / 2) <= _PROBED

    def squared(self, X: Matrix) -> bool:
        return self.settings.tol is None and self.side == ROWS and dear(X)

    def step(self, X: Matrix, state: IterationState, summary: Any) -> IterationState:
        # Threads of BLAS wait busily for some time after a product, and short passes would wait for them.
        brief = self.narrow and state.passes + 1 < self.effort(X)
        with threadpool_limits(1 if brief else None):
            return super().step(X, state, summary)

    def advance(self, state: IterationState, basis: Basis, ritz: Ritz | None, most: int) -> Basis:
        l = state.basis.block.shape[1]
        known, images, image = basis.known, basis.images, basis.block
        width = sum(b.shape[1] for b in known)
        if ritz is not None and width + l > _BLOCKS * l:
            known, images, image, width = (ritz.vectors[:, :l],), (ritz.images[:, :l],), ritz.leak[:, :l], l
        width = max(min(l, most - width), 0)
        spare = np.random.default_rng([self.settings.seed, 2, state.passes]).standard_normal((image.shape[0], width))
        if self.side == ROWS and state.mean is not None:
            spare *= np.isfinite(state.mean)[:, None]
        shares = None if state.inner is None else state.inner[:, -l:][:, :width]  # of narrow blocks, which end together
        return Basis(known, images, orthonormal_beside(known, image[:, :width], spare, shares))


def _passes_left(moved: tuple[float, ...]) -> float:
    """How many passes more will settle the eigenvalues, at the pace of the last two."""
    if len(moved) < 3 or not np.isfinite(moved[-3]) or moved[-1] <= _SETTLED:
        return np.inf
    pace = np.log(max(moved[-3] / moved[-1], 1.1)) / 2
    return float(np.log(moved[-1] / _SETTLED) / pace)
