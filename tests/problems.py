"""Problems whose answer is known: matrices of chosen spectra, and the exact answer by LAPACK in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from pipeline import Subspace, open_matrix
from pipeline.driver import solve
from pipeline.kernels.linalg import principal_angles
from pipeline.kernels.rank import Rank
from pipeline.plans import prepare
from pipeline.solvers import Settings

SOLVERS = ("gram", "dual_gram", "krylov", "randomized")

# Name to singular values of the centred matrix, by the rank r that there is room for.
SPECTRA: dict[str, Callable[[int], np.ndarray]] = {
    "power 1/2": lambda r: np.arange(1, r + 1) ** -0.5,
    "power 1": lambda r: np.arange(1, r + 1) ** -1.0,
    "power 2": lambda r: np.arange(1, r + 1) ** -2.0,
    "exponential": lambda r: 0.7 ** np.arange(r),
    "step": lambda r: np.where(np.arange(r) < 5, 10.0, 1.0),
    "staircase": lambda r: 2.0 ** -(np.arange(r) // 3),
    "pairs": lambda r: 0.5 ** (np.arange(r) // 2),
    "cliff": lambda r: np.where(np.arange(r) < 5, 2.0 ** -np.arange(r), 1e-7),
    "flat tail": lambda r: np.maximum(0.5 ** np.arange(r), 0.05),
    "flat": np.ones,
    "near tie": lambda r: np.where(np.arange(r) < 5, 1.0 + 1e-9 * (5 - np.arange(r)), 0.1),
    "rank 3": lambda r: np.where(np.arange(r) < 3, 3.0 - np.arange(r), 0.0),
    "constant": np.zeros,
}


@dataclass(frozen=True)
class Exact:
    """Answer by LAPACK: all singular values, all right vectors as rows (d, d), the mean, the total sum of squares."""

    values: np.ndarray
    vectors: np.ndarray
    mean: np.ndarray
    energy: float
    moments: np.ndarray

    def angle(self, rows: np.ndarray) -> float:
        """Sine of the largest angle between the span of k rows and that of the leading k vectors."""
        return float(np.sin(principal_angles(self.vectors[: len(rows)], rows.astype(np.float64)).max(initial=0.0)))

    def gap(self, j: int) -> float:
        """(s_j^2 - s_(j+1)^2) / s_1^2 after the first j vectors: what decides how well these are determined."""
        squares = np.append(self.values**2, np.zeros(len(self.vectors)))
        return float((squares[j - 1] - squares[j]) / squares[0]) if squares[0] else 0.0

    def residual(self, found: Subspace) -> np.ndarray:
        """The true ||Z^T u - s v|| / s of each component."""
        v, s = found.components.astype(np.float64), found.singular_values
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.linalg.norm(v @ self.moments - s[:, None] ** 2 * v, axis=1) / s**2


def exact(
    X: Any,
    *,
    center: bool = True,
    scale: str | None = None,
    weights: np.ndarray | None = None,
    sample_weights: np.ndarray | None = None,
) -> Exact:
    """The answer of LAPACK, on data that was centred in extended precision."""
    x = np.asarray(X).reshape(len(X), -1).astype(np.longdouble)
    w = np.ones(len(x)) if sample_weights is None else np.asarray(sample_weights, dtype=np.float64)
    moved = x - x[0]  # so that a spread of a few last digits of the mean keeps its own digits
    centred = moved - w @ moved / w.sum()
    mean = x[0] + w @ moved / w.sum()
    z = centred if center else x
    if scale == "std":
        spread = np.sqrt(w @ centred**2 / w.sum())
        z = z / np.where(spread > 0, spread, 1.0)
    z = (z * np.sqrt(w)[:, None] * (1.0 if weights is None else weights)).astype(np.float64)
    _, values, vectors = np.linalg.svd(z, full_matrices=True)
    return Exact(values, vectors, mean.astype(np.float64), float(np.sum(z**2)), z.T @ z)


@dataclass(frozen=True)
class Problem:
    """A matrix with mean zero up to `mean`, of singular values SPECTRA[name] and random singular vectors."""

    name: str
    n: int = 120
    d: int = 30
    seed: int = 0
    mean: float = 3.0
    dtype: Any = np.float64

    @cached_property
    def X(self) -> np.ndarray:
        """(n, d) entries."""
        rng = np.random.default_rng(self.seed)
        r = min(self.n - 1, self.d)
        left = rng.standard_normal((self.n, r))
        u = np.linalg.qr(left - left.mean(axis=0))[0]
        v = np.linalg.qr(rng.standard_normal((self.d, r)))[0]
        values = np.sqrt(self.n) * SPECTRA[self.name](r)
        return ((u * values) @ v.T + self.mean * rng.standard_normal(self.d)).astype(self.dtype)

    @cached_property
    def exact(self) -> Exact:
        """The answer for the entries as they are, rounded to `dtype`."""
        return exact(self.X)


def fitted(
    X: Any, k: int | float | str | None, solver: str = "gram", block: int | None = None, **settings: Any
) -> Subspace:
    """The Subspace of anything that opens, by one solver, in blocks of so many rows (columns on a transposed walk)."""
    given = {name: settings.pop(name) for name in ("weights", "sample_weights") if name in settings}
    matrix = open_matrix(X, **given)
    ready = prepare(matrix, Settings(Rank(k), **settings), solver, None)
    return solve(ready.matrix if block is None else ready.matrix.cut_at(block), ready.solver)
