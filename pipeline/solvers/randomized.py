"""`randomized`: shifted subspace iteration, one pass an iteration; holds one block of vectors and no more.

The next block spans (C - a I) Q with a shift a of half the smallest Ritz value: it keeps the order of the eigenvalues
and speeds convergence up (Feng, Yu, Xie and Tang 2024).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from pipeline.kernels.linalg import orthonormal
from pipeline.matrix import Matrix
from pipeline.solvers.extraction import Ritz
from pipeline.solvers.iteration import Basis, Iteration, IterationState

__all__ = ["Randomized"]


@dataclass(frozen=True)
class Randomized(Iteration):
    """Subspace iteration from a random block."""

    name: ClassVar[str] = "randomized"
    blocks_held: ClassVar[int] = 8

    def passes(self, X: Matrix) -> int:
        """Ten, or the two that are exact where a block holds every direction."""
        return 2 if self.width(X) == min(X.shape) else 10

    def advance(self, state: IterationState, basis: Basis, ritz: Ritz | None, most: int) -> Basis:
        assert ritz is not None
        # No shift in the first pass: its block is random, also at features that have no values.
        shift = max(float(ritz.theta[-1]), 0.0) / 2 if state.passes > 1 else 0.0
        return replace(state.basis, block=orthonormal(ritz.images - shift * ritz.vectors))
