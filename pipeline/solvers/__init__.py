"""The registry of solvers: one solver a file, all with the same words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pipeline.matrix import Matrix
from pipeline.solvers.dual_gram import DualGram
from pipeline.solvers.gram import Gram
from pipeline.solvers.krylov import Krylov
from pipeline.solvers.randomized import Randomized
from pipeline.solvers.single_pass import SinglePass
from pipeline.solvers.solver import Settings, Solver

__all__ = ["SOLVERS", "Settings", "Solver"]


def _longer_side(X: Matrix) -> int:
    """The side whose walk reads less; with equal reading the longer one, as the other is what is broadcast."""
    rows, columns = X.bytes_a_pass, X.T.bytes_a_pass
    longer = 0 if X.shape[0] >= X.shape[1] else 1
    return longer if (rows, columns)[longer] <= 1.5 * (rows, columns)[1 - longer] else 1 - longer


SOLVERS: dict[str, Callable[[Matrix, Settings], Solver[Any]]] = {
    "gram": lambda X, settings: Gram(settings),
    "dual_gram": lambda X, settings: DualGram(settings),
    "krylov": lambda X, settings: Krylov(settings, _longer_side(X)),
    "randomized": lambda X, settings: Randomized(settings, _longer_side(X)),
    "single_pass": lambda X, settings: SinglePass(settings, _longer_side(X)),
}
"""Name to maker: what `solver=` takes beside 'auto'."""
