"""`Solver`: from a Matrix to a Subspace, in the same words for all of them; and what they share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np

from pipeline.fold import Fold
from pipeline.kernels.linalg import fix_signs
from pipeline.kernels.rank import Rank
from pipeline.matrix import Matrix
from pipeline.subspace import Subspace

__all__ = [
    "COMPLETE",
    "CONVERGED",
    "LIMIT",
    "NO_GAP",
    "STALLED",
    "Answer",
    "Cost",
    "Settings",
    "Solver",
    "unit_roundoff",
]

# Why a solver stopped.
CONVERGED, COMPLETE, LIMIT, STALLED, NO_GAP = "converged", "complete", "limit", "stalled", "no gap"

St = TypeVar("St")


@dataclass(frozen=True)
class Settings:
    """What a user may ask of any solver; `tol` bounds the sine of the largest principal angle."""

    rank: Rank
    center: bool = True
    scale: str | None = None
    missing: str = "error"
    tol: float | None = None
    seed: int = 0
    max_passes: int = 60
    start: Subspace | None = None
    """An earlier answer, near to this one: what iterations along rows begin with."""


@dataclass(frozen=True)
class Cost:
    """What a solver will do to a matrix: for the plan, before anything is read."""

    passes: int
    """Times that the data is read (the least, with `tol`)."""
    side: int
    """Along which it is walked."""
    summary_bytes: int
    """A summary that tasks combine."""
    scratch_bytes: int
    """Work arrays of a task beside its block and summary."""
    client_bytes: int
    """What the driver needs at the end of a pass."""
    flops: float
    """Of one pass."""
    open_ended: bool = False
    """Whether the data decide how many passes more there will be."""
    state_bytes: int = 0
    """What of `client_bytes` is there while a pass runs."""
    sample: np.ndarray | None = None
    """Cuts of the walks over a part of the rows that a start is found from, as `spread_cuts` gives them."""
    sample_walks: int = 0
    dtype: np.dtype[Any] | None = None
    """In which blocks are multiplied, where that is not `Matrix.block_dtype`."""

    def entries_of(self, X: Matrix) -> Cost:
        """The same for the entries of X: what is made of complex numbers is twice as large as of real ones."""
        if X.work_dtype.kind != "c":
            return self
        sizes = {name: 2 * getattr(self, name) for name in ("summary_bytes", "client_bytes", "state_bytes")}
        return replace(self, **sizes)


class Solver(Protocol[St]):
    """A frozen record of settings that holds no data and never loops; the driver does.

    `St` is the state between steps: a small dataclass of arrays.
    """

    exact: ClassVar[bool]

    @property
    def name(self) -> str:
        """What it is called in the registry."""
        ...

    @property
    def settings(self) -> Settings:
        """What was asked for."""
        ...

    def cost(self, X: Matrix) -> Cost:
        """What it will take."""
        ...

    def init(self, X: Matrix) -> St:
        """The state before the first pass; raises InputError where the settings do not fit the matrix."""
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

    def result(self, X: Matrix, state: St) -> Subspace:
        """The answer; asked for once, when the solver is done."""
        ...


@dataclass(frozen=True)
class Answer:
    """What every solver ends with, in float64 and before signs, dtypes and labels."""

    components: np.ndarray
    """(d, k), zero at features without values."""
    singular_values: np.ndarray
    mean: np.ndarray
    """(d,), NaN at features without values."""
    scale: np.ndarray | None
    n_samples: float
    total_variance: float
    residual: np.ndarray
    sines: np.ndarray
    """(k,) bounds for the leading 1 … k components."""
    passes: int
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def subspace(self, X: Matrix, settings: Settings) -> Subspace:
        """The Subspace: signs fixed, in the data's precision, with labels, and NaN where there is no feature."""
        dtype = X.work_dtype
        rows = self.components.conj().T
        rows = (rows * fix_signs(rows)[:, None]).astype(dtype)
        # Storing components in the data's precision, and orthogonalising them, turns them a little.
        k = rows.shape[0]
        turned = np.sqrt(np.arange(1, k + 1)) * (unit_roundoff(dtype) + 1e-15 * np.sqrt(max(rows.shape[1], 1)))
        sines = np.clip(self.sines + turned, 0.0, 1.0)
        squares = np.square(self.singular_values)
        shaken = np.divide(squares.max(initial=0.0), squares, out=np.zeros(k), where=squares > 0)
        present = np.isfinite(self.mean)
        return Subspace(
            components=np.where(present, rows, np.nan).astype(dtype),
            singular_values=self.singular_values,
            mean=self.mean,
            n_samples=self.n_samples,
            total_variance=self.total_variance,
            residual=self.residual + unit_roundoff(dtype) * shaken,
            angle_bounds=np.arcsin(sines),
            scale=self.scale,
            weights=X.weights,
            centered=settings.center,
            passes=self.passes,
            features=X.features,
            provenance=self.provenance,
        )


def unit_roundoff(dtype: Any) -> float:
    """Half the spacing of numbers at 1."""
    return float(np.finfo(dtype).eps) / 2
