"""The registry of solvers: one solver a file, all with the same words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pipeline.errors import InputError
from pipeline.matrix import Matrix
from pipeline.solvers.dual_gram import DualGram
from pipeline.solvers.gram import Gram
from pipeline.solvers.krylov import Krylov
from pipeline.solvers.randomized import Randomized
from pipeline.solvers.single_pass import SinglePass
from pipeline.solvers.solver import Settings, Solver
from pipeline.sources import COLUMNS, ROWS
from pipeline.sources.stream import Stream

__all__ = ["SOLVERS", "Settings", "Solver", "candidates"]


def _side(X: Matrix, settings: Settings) -> int:
    """The side whose walk reads less; with equal reading the longer one, as the other is what is broadcast.

    Unless its blocks are too few to go round: chunks can be as long as that side. A start has vectors of the features,
    which a walk along the rows can begin with.
    """
    if isinstance(X.source, Stream):
        return ROWS
    walks = X, X.T
    longer = ROWS if X.shape[0] >= X.shape[1] or settings.start is not None else COLUMNS
    this, other = walks[longer], walks[1 - longer]
    too_few = this.n_blocks < _ENOUGH <= other.n_blocks
    return 1 - longer if too_few or this.bytes_a_pass > 1.5 * other.bytes_a_pass else longer


_ENOUGH = 4  # blocks that give a few threads something to do
_SPARE = 8  # extra columns of a block where all of them cost the same

SOLVERS: dict[str, Callable[[Matrix, Settings], Solver[Any]]] = {
    "gram": lambda X, settings: Gram(settings),
    "dual_gram": lambda X, settings: DualGram(settings),
    "krylov": lambda X, settings: Krylov(settings, _side(X, settings), _SPARE if X.source.implicit else None),
    "randomized": lambda X, settings: Randomized(settings, _side(X, settings)),
    "single_pass": lambda X, settings: SinglePass(settings, _side(X, settings)),
}
"""Name to maker: what `solver=` takes beside 'auto'."""

_ONCE = ("gram", "single_pass")


def candidates(X: Matrix, settings: Settings, solver: str) -> list[str]:
    """The names to choose from for a matrix; raises InputError where `solver` is unknown or cannot be."""
    if solver != "auto" and solver not in SOLVERS:
        raise InputError(f"solver={solver!r}: choose 'auto' or one of {', '.join(map(repr, SOLVERS))}")
    if not isinstance(X.source, Stream):  # a single pass is for those who ask for it: its answer is the coarsest
        return [name for name in SOLVERS if name != "single_pass"] if solver == "auto" else [solver]
    if settings.missing != "error":
        raise InputError(
            f"missing={settings.missing!r} takes a pass of its own, and a stream can be read only once: fill it before"
        )
    if solver not in ("auto", *_ONCE):
        raise InputError(
            f"solver={solver!r} reads its data several times and a stream can be read only once: choose 'auto', "
            f"{' or '.join(map(repr, _ONCE))}, or write the stream to a store"
        )
    return list(_ONCE) if solver == "auto" else [solver]
