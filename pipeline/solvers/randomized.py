"""`randomized`: shifted subspace iteration, one pass an iteration; holds one block of vectors and no more.

dashSVD (Feng, Yu, Xie and Tang 2024): the next block spans (C - a I) Q with a shift a that follows the Ritz values and
never passes half the smallest, so that it keeps the order of the eigenvalues and speeds convergence up. Their update,
a = (a + the smallest singular value of (C - a I) Q) / 2, comes to rest there; Rayleigh-Ritz shows it at once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from pipeline.kernels.linalg import orthonormal
from pipeline.matrix import Matrix
from pipeline.solvers.basis import Basis
from pipeline.solvers.extraction import Ritz
from pipeline.solvers.iteration import Iteration, IterationState, dear

__all__ = ["Randomized"]

_SETTLED = 1e-4


@dataclass(frozen=True)
class Randomized(Iteration):
    """Subspace iteration from a random block."""

    name: ClassVar[str] = "randomized"

    def passes(self, X: Matrix) -> int:
        """Ten at most, or the two that are exact where a block holds every direction."""
        return 2 if self.width(X) == min(X.shape) else 10

    def settled(self, X: Matrix, state: IterationState) -> bool:
        return dear(X) and state.moved <= _SETTLED

    def advance(self, state: IterationState, basis: Basis, ritz: Ritz | None, most: int) -> Basis:
        assert ritz is not None
        # No shift in the first pass: its block is random, also at features that have no values.
        shift = max(float(ritz.theta[-1]), 0.0) / 2 if state.passes > 1 else 0.0
        return replace(state.basis, block=orthonormal(ritz.images - shift * ritz.vectors))
