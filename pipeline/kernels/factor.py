"""The scatter of rows, kept small: what a stream remembers of the rows that have passed.

For up to 256 features it is the scatter itself; for more, R (r, d) with R^T R nearly the scatter: the leading
directions times their singular values, with the whole trace beside them. Two are merged by the formula of Chan, Golub
and LeVeque (1983), thin ones by a small SVD.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pipeline.kernels.linalg import eigh_descending, orthonormal

__all__ = ["EXACT", "Factor", "directions", "factor_of_rows", "leading_rows"]

_STEPS = 2  # of subspace iteration on a scatter

EXACT = 256
"""Features whose scatter is kept whole."""


@dataclass(frozen=True, eq=False)
class Factor:
    """Number of rows, their mean (d,), `root` (the scatter (d, d) of narrow rows, or R (r, d)), and their energy: the
    sum of squares about the mean."""

    n: float
    mean: np.ndarray
    root: np.ndarray
    energy: float

    @property
    def narrow(self) -> bool:
        """Whether `root` is the scatter itself."""
        return self.mean.size <= EXACT

    def rows(self, k: int) -> np.ndarray:
        """s_i v_i^T (r, d), largest first, of up to k directions."""
        return self._leading[:k] if self.narrow else self.root[:k]

    @cached_property
    def _leading(self) -> np.ndarray:
        values, vectors = eigh_descending(self.root)
        return np.sqrt(np.maximum(values, 0.0))[:, None] * vectors.T

    def directions(self, k: int, guess: np.ndarray | None = None) -> np.ndarray:
        """Up to k leading directions (r, d) of norm 1; with a guess (q, d) near enough to judge rows by, and fast."""
        if not self.narrow or guess is None or k + len(guess) > len(self.root) // 4:
            return directions(self.rows(k))
        fresh = np.random.default_rng(0).standard_normal((k, len(self.root)))
        basis = np.vstack([guess, fresh]).T
        for _ in range(_STEPS):
            basis = np.linalg.qr(self.root @ basis)[0]
        _, turn = eigh_descending(basis.T @ self.root @ basis, k)
        return (basis @ turn).T

    def squares(self, lens: np.ndarray) -> np.ndarray:
        """(p,) sums of squares along the columns of `lens` (d, p)."""
        image = self.root @ lens
        return np.einsum("ij,ij->j", lens if self.narrow else image, image)

    def merged(self, other: Factor, rank: int, center: bool = True) -> Factor:
        """The factor of both sets of rows; a thin one is cut to `rank`."""
        if not self.n or not other.n:
            return self if self.n else other
        n = self.n + other.n
        apart = other.mean - self.mean
        gap = np.sqrt(self.n * other.n / n) * apart if center else np.zeros_like(apart)
        energy = self.energy + other.energy + float(gap @ gap)
        if self.narrow:
            root = self.root + other.root + np.outer(gap, gap)
        else:
            root = leading_rows(np.vstack([self.root, other.root, gap[None]]), rank)
        return Factor(n, self.mean + apart * (other.n / n), root, energy)


def factor_of_rows(z: np.ndarray, rank: int, center: bool = True, guess: np.ndarray | None = None) -> Factor:
    """The factor of rows (m, d), in float64; `guess` (r, d) holds directions that are likely to lead."""
    mean = z.mean(axis=0, dtype=np.float64) if center and len(z) else np.zeros(z.shape[1])
    z = z - mean.astype(z.dtype)
    if z.shape[1] <= EXACT:
        scatter = (z.T @ z).astype(np.float64)
        return Factor(float(len(z)), mean, scatter, float(np.trace(scatter)))
    energy = float(np.einsum("ij,ij->", z, z, dtype=np.float64))
    return Factor(float(len(z)), mean, leading_rows(z, rank, guess), energy)


def leading_rows(z: np.ndarray, rank: int, guess: np.ndarray | None = None) -> np.ndarray:
    """s_i v_i^T (r, d) of the leading singular triplets of z (m, d), largest first.

    Through the Gram matrix of the shorter side where that is short; else by two steps of subspace iteration.
    """
    m, d = z.shape
    width = min(rank + 8, m, d)
    if min(m, d) <= 2 * width:
        if m <= d:
            _, left = np.linalg.eigh((z @ z.T).astype(np.float64))
            return (left[:, ::-1][:, :rank].T.astype(z.dtype) @ z).astype(np.float64)
        values, right = np.linalg.eigh((z.T @ z).astype(np.float64))
        roots = np.sqrt(np.maximum(values[::-1][:rank], 0.0))
        return roots[:, None] * right[:, ::-1][:, :rank].T
    start = np.random.default_rng(0).standard_normal((d, width)).astype(z.dtype)
    if guess is not None and len(guess):
        start[:, : min(len(guess), width - 4)] = guess[: width - 4].T
    basis = start
    for _ in range(2):
        basis = orthonormal(z.T @ (z @ basis)).astype(z.dtype)
    return leading_rows(z @ basis, rank) @ basis.T.astype(np.float64)


def directions(rows: np.ndarray) -> np.ndarray:
    """Rows of a factor as unit vectors; those that are nothing but rounding are left out."""
    size = np.linalg.norm(rows, axis=1)
    real = size > 1e-9 * max(float(size.max(initial=0.0)), np.finfo(float).tiny)
    return rows[real] / size[real, None]
