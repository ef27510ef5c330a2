"""What the robust methods share: what is asked of them, what they start from, and what they find."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np

from pipeline.fold import Fold
from pipeline.folds.rowmaps import Pulled, RowMap, Sieve, slabs, standardised
from pipeline.matrix import Matrix
from pipeline.solvers import Settings, Solver
from pipeline.solvers.gram import Gram
from pipeline.solvers.krylov import Krylov
from pipeline.solvers.randomized import Randomized
from pipeline.solvers.solver import Cost
from pipeline.sources import ROWS
from pipeline.subspace import Subspace

__all__ = ["INNER", "Certificate", "Found", "Method", "Options", "Start", "factor_of", "inner_solver", "looked"]

St = TypeVar("St")
_SMALL = 1500  # features up to which a square matrix of them is the fastest way


@dataclass(frozen=True)
class Options:
    """What a user may ask of a robust method beside the settings of every solver."""

    method: str
    eps: float
    center: bool | str = True
    scale: str | None = None
    alpha: float | str = 0.3
    search: str = "block"
    solver: str = "auto"
    missing: str = "error"


@dataclass(frozen=True, eq=False)
class Start:
    """What the survey found, or None where there was no need of one.

    center, fill and scale are (d,) arrays, NaN at features without values; `sample` holds some rows, or all of them.
    """

    center: np.ndarray | None = None
    fill: np.ndarray | None = None
    scale: np.ndarray | None = None
    sample: np.ndarray | None = None
    whole: bool = False


@dataclass(frozen=True)
class Certificate:
    """Whether the promise of a method holds for its answer, and what it rests on, in one sentence."""

    holds: bool
    text: str


@dataclass(frozen=True, eq=False)
class Found:
    """What a method ends with.

    `sample` (m, k + 1) holds scores and orthogonal distances of rows that were not cut off, where the method has them;
    where `measured` is False the variances are still to be measured on such a sample, robustly.
    """

    subspace: Subspace
    certificate: Certificate
    removed: float | None = None
    sieve: Sieve = field(default_factory=Sieve)
    sample: np.ndarray | None = None
    measured: bool = False
    judges_rows: bool = False
    """Whether eps is held against the rows beyond the cut-offs, where none were cut off."""
    suspected: Sieve = field(default_factory=Sieve)
    """Leaves out the rows to be flagged that are in the answer, as eps does not allow to cut off more."""
    pulled: tuple[Pulled, ...] = ()
    """What rows that are kept were drawn in by."""
    cut: np.ndarray | None = None
    """As `sample`, of rows that were cut off; for pictures."""


class Method(Protocol[St]):
    """A solver of the driver in all but its start, which is a survey, and its end, which is more than a subspace."""

    name: ClassVar[str]

    def surveyed(self) -> bool:
        """Whether it needs a survey of the data to start from."""
        ...

    def cost(self, X: Matrix) -> Cost:
        """What it will take, the survey apart."""
        ...

    def begin(self, X: Matrix, start: Start, maps: tuple[RowMap, ...]) -> St:
        """The state before its first pass; `maps` are what rows go through before it."""
        ...

    def fold(self, X: Matrix, state: St) -> Fold[Any]:
        """The next walk."""
        ...

    def step(self, X: Matrix, state: St, summary: Any) -> St:
        """The state after a walk."""
        ...

    def done(self, state: St) -> str | None:
        """Why to stop, or None to go on."""
        ...

    def result(self, X: Matrix, state: St) -> Found:
        """The answer."""
        ...


INNER: dict[str, Callable[[Settings], Solver[Any]]] = {
    "gram": Gram,
    "krylov": lambda settings: Krylov(settings, ROWS),
    "randomized": lambda settings: Randomized(settings, ROWS),
}
"""Solvers of the plain problem that walk rows, whatever the shape: rows are what is kept or left out."""


def inner_solver(X: Matrix, settings: Settings, name: str = "auto") -> Solver[Any]:
    """The solver of the rows that are kept."""
    if name == "auto":
        name = "gram" if X.shape[1] <= _SMALL else "krylov"
    return INNER[name](settings)


def factor_of(X: Matrix, present: np.ndarray) -> np.ndarray:
    """(d,) what features are multiplied by; zero where there is no feature."""
    return np.where(present, 1.0 if X.weights is None else X.weights, 0.0)


def looked(subspace: Subspace, rows: np.ndarray) -> np.ndarray:
    """(m, k + 1) scores of rows on all components, and their distances from the subspace, in weighted, scaled units."""
    found = np.empty((len(rows), subspace.k + 1))
    start = 0
    for slab in slabs(rows):
        z = standardised(slab, subspace.offset, subspace.factor)
        basis = subspace.basis.astype(z.dtype)
        scores = z @ basis.T
        z -= scores @ basis
        stop = start + len(z)
        found[start:stop, :-1] = scores
        found[start:stop, -1] = np.sqrt(np.einsum("ij,ij->i", z, z, dtype=np.float64))
        start = stop
    return found
