"""`krylov`: randomized block Krylov iteration: the fewest passes; it keeps the products of all of them.

After p passes the basis spans [Q, C Q, …, C^(p-1) Q] (Musco and Musco 2015). When it has grown to its limit it is
restarted from the leading Ritz vectors and their residual (thick restart, Wu and Simon 2000).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from pipeline.kernels.linalg import orthonormal_beside
from pipeline.matrix import Matrix
from pipeline.solvers.extraction import Ritz
from pipeline.solvers.iteration import Basis, Iteration, IterationState, dear
from pipeline.sources import ROWS

__all__ = ["Krylov"]

_BLOCKS = 8


@dataclass(frozen=True)
class Krylov(Iteration):
    """Block Krylov iteration from a random block.

    Without a `tol` it takes four passes and Nystrom extraction, for a worst eigenvalue error of about 1e-3 on spectra
    that decay slowly; five passes and Ritz vectors, whose singular values are the norms of their scores to the last
    digit, where a pass costs little. Of data that is not made dense every column of a block costs the same: there are
    fewer of them, and six passes.
    """

    name: ClassVar[str] = "krylov"
    blocks_held: ClassVar[int] = 5 * _BLOCKS

    def passes(self, X: Matrix) -> int:
        """Four to six, or as many as fill the whole space after the random start."""
        most = 4 if dear(X) else 6 if X.source.implicit else 5
        return min(most, 1 - (-min(X.shape) // self.width(X)))

    def due(self, X: Matrix, state: IterationState) -> bool:
        return self.settings.tol is not None or self.settings.rank.open or state.passes >= self.effort(X)

    def squared(self, X: Matrix) -> bool:
        return self.settings.tol is None and self.side == ROWS and dear(X)

    def advance(self, state: IterationState, basis: Basis, ritz: Ritz | None, most: int) -> Basis:
        l = state.basis.block.shape[1]
        known, images, image = basis.known, basis.images, basis.block
        if ritz is not None and known.shape[1] + l > _BLOCKS * l:
            known, images, image = ritz.vectors[:, :l], ritz.images[:, :l], ritz.leak[:, :l]
        width = max(min(l, most - known.shape[1]), 0)
        spare = np.random.default_rng([self.settings.seed, 2, state.passes]).standard_normal((image.shape[0], width))
        if self.side == ROWS and state.mean is not None:
            spare *= np.isfinite(state.mean)[:, None]
        return Basis(known, images, orthonormal_beside(known, image[:, :width], spare))
