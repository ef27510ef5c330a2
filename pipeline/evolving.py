"""`EvolvingSVD`: the truncated decomposition of a sparse matrix that grows and changes, at the price of what changed.

The factors are kept as U = U0 Ku and V = V0 Kv with small square Ku, Kv (Deng et al., ICLR 2024, arXiv 2401.09703): an
update turns Ku and Kv, and touches only those rows of U0 and V0 where the change has entries. Where Ku or Kv become
ill-conditioned, the product is formed, and made orthonormal again.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse

from pipeline.errors import InputError
from pipeline.kernels.updates import orthonormalised, residual_basis

__all__ = ["EvolvingSVD"]

_ILL = 1e6  # condition number of Ku or Kv from which on the product is formed


class _Side:
    """One factor as base @ turn, with room for rows to come."""

    def __init__(self, factor: np.ndarray) -> None:
        self.room, self.length = np.array(factor, np.float64, order="C"), len(factor)
        self.turn = np.eye(factor.shape[1])

    @property
    def base(self) -> np.ndarray:
        return self.room[: self.length]

    def whole(self) -> np.ndarray:
        return self.base @ self.turn

    def grow(self, rows: np.ndarray) -> None:
        """Append rows (of the base); the room doubles, so that appending costs what is appended."""
        need = self.length + len(rows)
        if need > len(self.room):
            room = np.zeros((max(need, 2 * len(self.room)), self.room.shape[1]))
            room[: self.length] = self.base
            self.room = room
        self.room[self.length : need] = rows
        self.length = need

    def turned(self, by: np.ndarray) -> None:
        """Multiply the whole factor by a (k, k) matrix; afterwards `over` may be asked for."""
        turn = self.turn @ by
        if np.linalg.cond(turn) > _ILL:
            self.room, self.turn = self.room @ turn, np.eye(len(by))
        else:
            self.turn = turn

    def over(self, rows: np.ndarray) -> np.ndarray:
        """What rows of the whole factor are in the base."""
        return np.linalg.solve(self.turn.T, rows.T).T


class _Outside:
    """Columns of a sparse (m, s) matrix: where they have entries, their part inside of a factor, and Q outside."""

    def __init__(self, side: _Side, columns: Any, most: int | None) -> None:
        self.at, self.b = _touched(columns)
        self.inside = side.turn.T @ (side.base[self.at].T @ self.b)
        p, self.r, _ = residual_basis(self.inside, self.b.T @ self.b, most)
        b = self.b @ p
        # Once more, about what rounding has left inside: twice is enough.
        c = side.turn.T @ (side.base[self.at].T @ b)
        p, r, _ = residual_basis(c, b.T @ b)
        self.b, self.c, self.r = b @ p, c @ p, r @ self.r

    def rotate(self, side: _Side, f: np.ndarray, k: int) -> None:
        """The factor becomes [V Q] f, with Q = b - V c."""
        side.turned(f[:k] - self.c @ f[k:])
        side.room[self.at] += side.over(self.b @ f[k:])


class EvolvingSVD:
    """The leading k singular triplets of a sparse matrix, kept up to date.

    Each update finds the exact triplets of the matrix of rank k that was kept and the change; what was cut off before
    does not come back (nor does it in any other method that reads nothing again).

    Parameters
    ----------
    matrix : (n, d) sparse matrix or array
        What it starts from.
    n_components : int
        k, below min(n, d).
    most : int, optional
        How many new directions an update may bring on each side; default: as many as it has.
    random_state : int
        Of the first decomposition.

    Attributes
    ----------
    singular_values : (k,) array

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> A = scipy.sparse.random_array((60, 40), density=0.1, rng=rng, format="csr")
    >>> svd = EvolvingSVD(A[:50], 5)
    >>> svd.add_rows(A[50:])
    >>> svd.shape, bool(svd.obliqueness < 1e-10)
    ((60, 40), True)
    """

    def __init__(self, matrix: Any, n_components: int, most: int | None = None, random_state: int = 0) -> None:
        matrix = scipy.sparse.csr_array(matrix, dtype=np.float64)
        if not 0 < n_components < min(matrix.shape):
            raise InputError(f"n_components={n_components}: choose 1 to {min(matrix.shape) - 1}, below both sides")
        start = np.random.default_rng(random_state).standard_normal(min(matrix.shape))
        u, s, vt = scipy.sparse.linalg.svds(matrix, n_components, v0=start)
        order = np.argsort(-s)
        self._left, self.singular_values, self._right = _Side(u[:, order]), s[order], _Side(vt[order].T)
        self._most = most

    @property
    def shape(self) -> tuple[int, int]:
        """(n, d) of the matrix as it is now."""
        return self._left.length, self._right.length

    @property
    def left(self) -> np.ndarray:
        """(n, k) left singular vectors; formed at the price of all rows."""
        return self._left.whole()

    @property
    def components(self) -> np.ndarray:
        """(k, d) right singular vectors as rows; formed at the price of all columns."""
        return self._right.whole().T

    def rows(self, at: Any) -> np.ndarray:
        """Some rows of the left singular vectors, at the price of these rows."""
        return self._left.base[at] @ self._left.turn

    @property
    def obliqueness(self) -> float:
        """How far the factors are from orthonormal: the largest entry of |V^T V - I| and |U^T U - I|."""
        eye = np.eye(self.singular_values.size)
        sides = (self._left.whole(), self._right.whole())
        return float(max(np.abs(side.T @ side - eye).max() for side in sides))

    def add_rows(self, rows: Any) -> None:
        """More rows (m, d) below."""
        self._append(self._left, self._right, rows)

    def add_columns(self, columns: Any) -> None:
        """More columns (n, m) at the right."""
        self._append(self._right, self._left, scipy.sparse.csr_array(columns).T)

    def change(self, left: Any, right: Any) -> None:
        """Add left right^T, with sparse left (n, m) and right (d, m): entries, rows or columns that change."""
        if left.shape[0] != self.shape[0] or right.shape[0] != self.shape[1] or left.shape[1] != right.shape[1]:
            raise InputError(f"left {left.shape} and right {right.shape} do not fit a matrix {self.shape}")
        k, s = self.singular_values.size, self.singular_values
        one, other = _Outside(self._left, left, self._most), _Outside(self._right, right, self._most)
        core = np.vstack([one.inside, one.r]) @ np.vstack([other.inside, other.r]).T
        core[:k, :k] += np.diag(s)
        f, t, gt = np.linalg.svd(core, full_matrices=False)
        one.rotate(self._left, f[:, :k], k)
        other.rotate(self._right, gt[:k].T, k)
        self.singular_values = t[:k]

    def orthonormalise(self) -> None:
        """Form the factors and make them orthonormal again: after very many updates, against rounding."""
        u, s, v = orthonormalised(self._left.whole(), self.singular_values, self._right.whole())
        self._left, self.singular_values, self._right = _Side(u), s, _Side(v)

    def _append(self, along: _Side, across: _Side, rows: Any) -> None:
        if rows.shape[1] != across.length:
            raise InputError(f"{rows.shape[1]} entries in each: {across.length} are needed")
        if rows.shape[0] == 0:
            return
        k, s = self.singular_values.size, self.singular_values
        outside = _Outside(across, scipy.sparse.csr_array(rows).T, self._most)
        core = np.block([[np.diag(s), np.zeros((k, outside.r.shape[0]))], [outside.inside.T, outside.r.T]])
        f, t, gt = np.linalg.svd(core, full_matrices=False)
        along.turned(f[:k, :k])
        along.grow(along.over(f[k:, :k]))
        outside.rotate(across, gt[:k].T, k)
        self.singular_values = t[:k]


def _touched(columns: Any) -> tuple[np.ndarray, np.ndarray]:
    """The rows of a sparse matrix that have entries, and these rows as a dense matrix."""
    rows = scipy.sparse.csr_array(columns, dtype=np.float64)
    if not np.isfinite(rows.data).all():
        raise InputError("the change holds NaN or Inf: leave those entries out")
    at = np.flatnonzero(np.diff(rows.indptr))
    return at, rows[at].toarray()
