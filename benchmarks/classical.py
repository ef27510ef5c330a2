"""The classical rules for the truncated decomposition of a matrix that changes, as fast as they can be written here.

All find the leading k triplets of the matrix of rank k that was kept and the change, and see the change through
products only.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.linalg
import scipy.sparse as sp

from pipeline.kernels.updates import orthonormalised

__all__ = ["Brand", "Triplet", "ZhaSimon"]

Triplet = tuple[np.ndarray, np.ndarray, np.ndarray]


class ZhaSimon:
    """Whole dense factors (n, k) and (d, k), turned by each update (Zha and Simon 1999)."""

    def __init__(self, u: np.ndarray, s: np.ndarray, v: np.ndarray) -> None:
        self._u, self._s, self._v = u, s, v

    def triplet(self) -> Triplet:
        return self._u, self._s, self._v

    def add_rows(self, rows: Any) -> None:
        self._u, self._s, self._v = _appended(self._u, self._s, self._v, rows)

    def add_columns(self, columns: Any) -> None:
        self._v, self._s, self._u = _appended(self._v, self._s, self._u, columns.T)

    def change(self, left: Any, right: Any) -> None:
        k = self._s.size
        (a, p, r), (b, q, t) = _split(self._u, left), _split(self._v, right)
        core = np.vstack([a, r]) @ np.vstack([b, t]).T
        core[:k, :k] += np.diag(self._s)
        f, values, gt = np.linalg.svd(core, full_matrices=False)
        self._u, self._s, self._v = _turned(self._u, p, f[:, :k]), values[:k], _turned(self._v, q, gt[:k].T)


def _appended(u: np.ndarray, s: np.ndarray, v: np.ndarray, rows: Any) -> Triplet:
    k, n = s.size, u.shape[0]
    inside, q, r = _split(v, rows.T)
    core = np.block([[np.diag(s), np.zeros((k, r.shape[0]))], [inside.T, r.T]])
    f, values, gt = np.linalg.svd(core, full_matrices=False)
    longer = np.empty((n + rows.shape[0], k))
    np.matmul(u, f[:k, :k], out=longer[:n])
    longer[n:] = f[k:, :k]
    return longer, values[:k], _turned(v, q, gt[:k].T)


def _split(basis: np.ndarray, columns: Any) -> Triplet:
    """Columns = basis @ inside + q @ r."""
    inside = (columns.T @ basis).T
    apart = columns.toarray()
    apart -= basis @ inside
    return inside, *scipy.linalg.qr(apart, mode="economic", overwrite_a=True, check_finite=False)


def _turned(basis: np.ndarray, beside: np.ndarray, f: np.ndarray) -> np.ndarray:
    k = basis.shape[1]
    turned = basis @ f[:k]
    turned += beside @ f[k:]
    return turned


class _Wide:
    """One factor of Brand's as base (n, j) times turn (j, k), j from k to 2 k, so that a new direction is appended."""

    def __init__(self, factor: np.ndarray) -> None:
        n, k = factor.shape
        self.base, self.turn = np.zeros((2 * n, 2 * k), order="F"), np.eye(k)
        self.base[:n, :k] = factor
        self.n = n

    def split(self, at: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, float, np.ndarray]:
        """What a sparse vector has inside, how much outside, and that direction."""
        base = self.base[: self.n, : self.turn.shape[0]]
        inside = self.turn.T @ (base[at].T @ values)
        apart = -(base @ (self.turn @ inside))
        apart[at] += values
        size = float(np.linalg.norm(apart))
        return inside, size, apart / size if size > 1e-13 * np.linalg.norm(values) else np.zeros_like(apart)

    def append(self, direction: np.ndarray, f: np.ndarray) -> None:
        if self.turn.shape[0] == 2 * self.turn.shape[1]:
            self.form()
        self.base[: self.n, self.turn.shape[0]] = direction
        self.turn = np.vstack([self.turn @ f[:-1], f[-1:]])

    def grow(self, row: np.ndarray, f: np.ndarray) -> None:
        """One more row, after a turn by f, which keeps the shape of turn: the base has its coefficients."""
        if self.n == len(self.base):
            self.base = np.vstack([self.base, np.zeros_like(self.base)])
        self.turn = self.turn @ f
        if np.linalg.cond(self.turn) > 1e6:
            self.form(orthonormal=False)
        j, k = self.turn.shape
        solved = np.linalg.solve(self.turn.T, row) if j == k else np.linalg.lstsq(self.turn.T, row)[0]
        self.base[self.n, :j] = solved
        self.n += 1

    def form(self, orthonormal: bool = True) -> None:
        k = self.turn.shape[1]
        whole, self.turn = self.whole(), np.eye(k)
        if orthonormal:
            whole, self.turn = scipy.linalg.qr(whole, mode="economic", check_finite=False)
        self.base[: self.n, :k] = whole

    def whole(self) -> np.ndarray:
        return self.base[: self.n, : self.turn.shape[0]] @ self.turn


class Brand:
    """One row, column or rank-one change after the other, five factors, formed every k steps (Brand 2006)."""

    def __init__(self, u: np.ndarray, s: np.ndarray, v: np.ndarray) -> None:
        self._left, self._s, self._right = _Wide(u), s, _Wide(v)

    def triplet(self) -> Triplet:
        return orthonormalised(self._left.whole(), self._s, self._right.whole())

    def add_rows(self, rows: Any) -> None:
        self._appended(self._left, self._right, sp.csr_array(rows))

    def add_columns(self, columns: Any) -> None:
        self._appended(self._right, self._left, sp.csr_array(columns.T))

    def change(self, left: Any, right: Any) -> None:
        k, left, right = self._s.size, sp.csc_array(left), sp.csc_array(right)
        for i in range(left.shape[1]):
            a, over, p = self._left.split(*_entries(left, i))
            b, beside, q = self._right.split(*_entries(right, i))
            core = np.outer(np.append(a, over), np.append(b, beside))
            core[:k, :k] += np.diag(self._s)
            f, values, gt = np.linalg.svd(core)
            self._left.append(p, f[:, :k])
            self._right.append(q, gt[:k].T)
            self._s = values[:k]

    def _appended(self, along: _Wide, across: _Wide, rows: sp.csr_array) -> None:
        k = self._s.size
        for i in range(rows.shape[0]):
            inside, size, direction = across.split(*_entries(rows, i))
            core = np.zeros((k + 1, k + 1))
            core[:k, :k] = np.diag(self._s)
            core[k] = np.append(inside, size)
            f, values, gt = np.linalg.svd(core)
            along.grow(f[k, :k], f[:k, :k])
            across.append(direction, gt[:k].T)
            self._s = values[:k]


def _entries(compressed: Any, i: int) -> tuple[np.ndarray, np.ndarray]:
    part = slice(compressed.indptr[i], compressed.indptr[i + 1])
    return compressed.indices[part], compressed.data[part]
