"""`EvolvingSVD`: the truncated decomposition of a sparse matrix that grows and changes, at the price of what changed.

The factors are kept as U = U0 Ku and V = V0 Kv with small square Ku, Kv (Deng et al., ICLR 2024, arXiv 2401.09703): an
update turns Ku and Kv, and touches only those rows of U0 and V0 where the change has entries. Where Ku or Kv become
ill-conditioned, the product is formed, and made orthonormal again.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.linalg
import scipy.sparse
import scipy.sparse.linalg

from pipeline.errors import InputError
from pipeline.kernels.updates import independent, orthonormalised, outside, outside_formed

__all__ = ["EvolvingSVD"]

_ILL = 1e6  # condition number of Ku or Kv from which on the product is formed
_SMALL = 64  # a side up to which the dense decomposition costs less than a start of Lanczos
_OBLIQUE = 1e-9  # departure from orthonormal factors from which on they are formed


class _Side:
    """One factor as base @ turn, with room for rows to come."""

    def __init__(self, factor: np.ndarray) -> None:
        self.room, self.length = np.zeros((2 * len(factor), factor.shape[1])), len(factor)  # not touched, no memory
        self.room[: self.length] = factor
        self.spent = 0  # rows touched since the factor was seen to be orthonormal
        self._turn(np.eye(factor.shape[1]))

    @property
    def base(self) -> np.ndarray:
        return self.room[: self.length]

    def whole(self) -> np.ndarray:
        return self.base @ self.turn

    def grow(self, rows: np.ndarray) -> None:
        """Append rows of the factor; the room doubles, so that appending costs what is appended."""
        need = self.length + len(rows)
        if need > len(self.room):
            room = np.zeros((max(need, 2 * len(self.room)), self.room.shape[1]))
            room[: self.length] = self.base
            self.room = room
        self.room[self.length : need] = self.over(rows)
        self.length = need
        self.spent += len(rows)

    def turned(self, by: np.ndarray) -> None:
        """Multiply the whole factor by a (k, k) matrix; afterwards `over` may be asked for."""
        self._turn(self.turn @ by)
        size = np.abs(self.turn).sum(axis=1).max(initial=0.0)  # the 1-norm of what was factored
        if not scipy.linalg.lapack.dgecon(self.factors, size)[0] * _ILL > 1:
            self.room[: self.length] = self.whole()
            self._turn(np.eye(len(by)))
            self.spent = self.length

    def over(self, rows: np.ndarray) -> np.ndarray:
        """What rows of the whole factor are in the base."""
        return scipy.linalg.lapack.dgetrs(self.factors, self.order, rows.T)[0].T

    def _turn(self, turn: np.ndarray) -> None:
        self.turn = turn
        self.factors, self.order, _ = scipy.linalg.lapack.dgetrf(turn.T)


class _Outside:
    """Columns of a sparse (m, s) matrix as V inside + Q r, with Q = b - V c: b dense, where they have entries."""

    def __init__(self, side: _Side, columns: Any, most: int | None) -> None:
        self.at, dense = _touched(columns)
        w, t = independent(dense)
        c = side.turn.T @ (side.base[self.at].T @ w)
        found = outside(c)
        if found is None:
            c, p, r = outside_formed(side.whole(), self.at, w)
        else:
            p, r = found
        self.inside, self.r = c @ t, r @ t
        if most is not None and most < len(self.r):
            x, sizes, yt = np.linalg.svd(self.r, full_matrices=False)
            p, self.r = p @ x[:, :most], sizes[:most, None] * yt[:most]
        self.b, self.c = w @ p, c @ p

    def rotate(self, side: _Side, f: np.ndarray) -> None:
        """The factor becomes [V Q] f."""
        k = len(f) - len(self.r)
        side.turned(f[:k] - self.c @ f[k:])
        side.room[self.at] += side.over(self.b @ f[k:])
        side.spent += len(self.at)


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
        matrix = _sparse(matrix)
        limit = min(matrix.shape) - 1
        if (
            type(n_components) is bool
            or not isinstance(n_components, int | np.integer)
            or not 0 < n_components <= limit
        ):
            raise InputError(f"n_components={n_components!r}: choose 1 to {limit}, below both sides")
        if most is not None and (not isinstance(most, int | np.integer) or most < 0):
            raise InputError(f"most={most!r}: choose a number of directions, or None for all")
        u, s, v = _start(matrix, int(n_components), random_state)
        self._left, self.singular_values, self._right, self._most = _Side(u), s, _Side(v), most

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
        self._append(self._left, self._right, _sparse(rows).T)

    def add_columns(self, columns: Any) -> None:
        """More columns (n, m) at the right."""
        self._append(self._right, self._left, _sparse(columns))

    def change(self, left: Any, right: Any) -> None:
        """Add left right^T, with sparse left (n, m) and right (d, m): entries, rows or columns that change."""
        left, right = _sparse(left), _sparse(right)
        if left.shape[0] != self.shape[0] or right.shape[0] != self.shape[1] or left.shape[1] != right.shape[1]:
            raise InputError(f"left {left.shape} and right {right.shape} do not fit a matrix {self.shape}")
        k, s = self.singular_values.size, self.singular_values
        one, other = _Outside(self._left, left, self._most), _Outside(self._right, right, self._most)
        core = np.vstack([one.inside, one.r]) @ np.vstack([other.inside, other.r]).T
        core[:k, :k] += np.diag(s)
        f, t, gt = scipy.linalg.svd(core, full_matrices=False, check_finite=False)
        one.rotate(self._left, f[:, :k])
        other.rotate(self._right, gt[:k].T)
        self.singular_values = t[:k]
        self._watch()

    def orthonormalise(self) -> None:
        """Form the factors and make them orthonormal again: after very many updates, against rounding."""
        u, s, v = orthonormalised(self._left.whole(), self.singular_values, self._right.whole())
        self._left, self.singular_values, self._right = _Side(u), s, _Side(v)

    def _append(self, along: _Side, across: _Side, rows: Any) -> None:
        """Rows as columns (d, m)."""
        if rows.shape[0] != across.length:
            raise InputError(f"{rows.shape[0]} entries in each: {across.length} are needed")
        k, s = self.singular_values.size, self.singular_values
        new = _Outside(across, rows, self._most)
        core = np.zeros((k + rows.shape[1], k + len(new.r)))
        core[:k, :k] = np.diag(s)
        core[k:, :k], core[k:, k:] = new.inside.T, new.r.T
        f, t, gt = scipy.linalg.svd(core, full_matrices=False, check_finite=False)
        along.turned(f[:k, :k])
        along.grow(f[k:, :k])
        new.rotate(across, gt[:k].T)
        self.singular_values = t[:k]
        self._watch()

    def _watch(self) -> None:
        """Measure the rounding, at the price of all rows, once as many rows were touched."""
        sides = (self._left, self._right)
        if any(side.spent >= side.length for side in sides):
            for side in sides:
                side.spent = 0
            if self.obliqueness > _OBLIQUE:
                self.orthonormalise()


def _sparse(given: Any) -> Any:
    """Real finite numbers by rows, or by columns where they come so."""
    matrix: Any = given if scipy.sparse.issparse(given) else np.asarray(given)
    if matrix.ndim != 2 or matrix.dtype.kind not in "biuf":
        raise InputError(f"{matrix.ndim} dimensions of {matrix.dtype}: a matrix of real numbers is needed")
    compressed = scipy.sparse.csc_array if getattr(matrix, "format", "csr") == "csc" else scipy.sparse.csr_array
    matrix = compressed(matrix.astype(np.float64))
    if not np.isfinite(matrix.data).all():
        raise InputError("the matrix holds NaN or Inf: leave those entries out")
    return matrix


def _start(matrix: Any, k: int, random_state: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Leading triplets (n, k), (k,) and (d, k), largest first."""
    n, d = matrix.shape
    if not matrix.count_nonzero():
        return np.eye(n, k), np.zeros(k), np.eye(d, k)
    if min(n, d) <= _SMALL:
        u, s, vt = scipy.linalg.svd(matrix.toarray(), full_matrices=False, check_finite=False)
        return u[:, :k], s[:k], vt[:k].T
    start = np.random.default_rng(random_state).standard_normal(min(n, d))
    u, s, vt = scipy.sparse.linalg.svds(matrix, k, v0=start)
    order = np.argsort(-s)
    return u[:, order], s[order], vt[order].T


def _touched(columns: Any) -> tuple[np.ndarray, np.ndarray]:
    """The rows that have entries, and these rows as a dense matrix, at the price of the entries."""
    columns = scipy.sparse.csc_array(columns)
    at, where = np.unique(columns.indices, return_inverse=True)
    return at, scipy.sparse.csc_array((columns.data, where, columns.indptr), (at.size, columns.shape[1])).toarray()
