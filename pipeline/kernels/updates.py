"""Rank-k singular value decompositions after rows or a low-rank change: the classical rules, on whole dense factors.

What they find is the truncated decomposition of the matrix of rank k that was kept and the change, not that of all
data.
"""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["Triplet", "brand_rows", "residual_basis", "zha_simon_change", "zha_simon_rows"]

Triplet = tuple[np.ndarray, np.ndarray, np.ndarray]


def zha_simon_rows(u: np.ndarray, s: np.ndarray, v: np.ndarray, rows: Any) -> Triplet:
    """Leading k triplets of [u diag(s) v^T; rows] (Zha and Simon 1999).

    Parameters
    ----------
    u, s, v : (n, k), (k,), (d, k) arrays
        Orthonormal columns, singular values largest first.
    rows : (m, d) array or sparse matrix
        What comes below.

    Returns
    -------
    (n + m, k), (k,), (d, k) arrays
    """
    k, m = s.size, rows.shape[0]
    inside = (rows @ v).T
    q, r = np.linalg.qr(_dense(rows).T - v @ inside)
    core = np.block([[np.diag(s), np.zeros((k, r.shape[0]))], [inside.T, r.T]])
    f, t, gt = np.linalg.svd(core, full_matrices=False)
    g = gt[:k].T
    return np.vstack([u @ f[:k, :k], f[k:, :k]]), t[:k], v @ g[:k] + q @ g[k:] if m else v


def zha_simon_change(u: np.ndarray, s: np.ndarray, v: np.ndarray, left: Any, right: Any) -> Triplet:
    """Leading k triplets of u diag(s) v^T + left right^T, for thin left (n, m) and right (d, m)."""
    k = s.size
    a, b = (left.T @ u).T, (right.T @ v).T
    p, r = np.linalg.qr(_dense(left) - u @ a)
    q, t = np.linalg.qr(_dense(right) - v @ b)
    core = np.vstack([a, r]) @ np.vstack([b, t]).T
    core[:k, :k] += np.diag(s)
    f, values, gt = np.linalg.svd(core, full_matrices=False)
    f, g = f[:, :k], gt[:k].T
    return u @ f[:k] + p @ f[k:], values[:k], v @ g[:k] + q @ g[k:]


def brand_rows(u: np.ndarray, s: np.ndarray, v: np.ndarray, rows: Any) -> Triplet:
    """The same as `zha_simon_rows`, one row after the other (Brand 2006), made orthonormal again at the end."""
    for i in range(rows.shape[0]):
        row = _dense(rows[i : i + 1])
        u, s, v = zha_simon_rows(u, s, v, row)
    return orthonormalised(u, s, v)


def orthonormalised(u: np.ndarray, s: np.ndarray, v: np.ndarray) -> Triplet:
    """The decomposition of u diag(s) v^T, whose factors rounding has made a little oblique."""
    (p, r), (q, t) = np.linalg.qr(u), np.linalg.qr(v)
    f, values, gt = np.linalg.svd((r * s) @ t.T)
    return p @ f, values, q @ gt.T


def residual_basis(
    inside: np.ndarray, gram: np.ndarray, most: int | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What vectors b_i have outside of an orthonormal basis, without forming it.

    With c = V^T b, the residuals b - V c have the inner products b^T b - c^T c. Their eigenvectors make them
    orthonormal: Q = (b - V c) p, and b = V c + Q r.

    Parameters
    ----------
    inside : (k, m) array
        c.
    gram : (m, m) array
        b^T b.
    most : int, optional
        How many directions of Q are kept: those that hold most.

    Returns
    -------
    p : (m, q) array
    r : (q, m) array
    kept : (q,) array
        The eigenvalues.
    """
    values, vectors = np.linalg.eigh(gram - inside.T @ inside)
    # What cancels is noise: a direction that is inside up to rounding is inside.
    noise = 4 * np.finfo(float).eps * max(gram.shape[0], inside.shape[0]) * float(np.diag(gram).max(initial=0.0))
    keep = np.flatnonzero(values > noise)[::-1][:most]
    size = np.sqrt(values[keep])
    return vectors[:, keep] / size, size[:, None] * vectors[:, keep].T, values[keep]


def _dense(rows: Any) -> np.ndarray:
    return rows.toarray() if hasattr(rows, "toarray") else np.asarray(rows)
