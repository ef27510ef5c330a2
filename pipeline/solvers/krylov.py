"""`krylov`: randomized block Krylov iteration: the fewest passes; it keeps the products of all of them.

After p passes the basis spans [Q, C Q, …, C^(p-1) Q] (Musco and Musco 2015). When it has grown to its limit it is
restarted from the leading Ritz vectors and their residual (thick restart, Wu and Simon 2000).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from pipeline.kernels.linalg import orthonormal
from pipeline.matrix import Matrix
from pipeline.solvers.iteration import Basis, Iteration, IterationState, Ritz

__all__ = ["Krylov"]

_BLOCKS = 8


@dataclass(frozen=True)
class Krylov(Iteration):
    """Block Krylov iteration from a random block."""

    name: ClassVar[str] = "krylov"
    blocks_held: ClassVar[int] = 5 * _BLOCKS

    def passes(self, X: Matrix) -> int:
        """Five, or as many as fill the whole space after the random start."""
        return min(5, 1 - (-min(X.shape) // self.width(X)))

    def advance(self, state: IterationState, ritz: Ritz, image: np.ndarray, most: int) -> Basis:
        l = state.basis.block.shape[1]
        known = np.hstack([state.basis.known, state.basis.block])
        images = np.hstack([state.basis.images, image])
        if (
            state.passes == 1
        ):  # the random block is no use beside what it became, and lives also where there are no values
            known, images, image = known[:, :0], images[:, :0], image
        elif known.shape[1] + l > _BLOCKS * l:
            known, images, image = ritz.vectors[:, :l], ritz.images[:, :l], ritz.leak[:, :l]
        block = image
        for _ in range(2):  # twice is enough (Giraud, Langou and Rozloznik 2005)
            block = orthonormal(block - known @ (known.T @ block))
        return Basis(known, images, block[:, : max(most - known.shape[1], 0)])
