"""What an update of a truncated decomposition brings that is new: the part of sparse vectors outside of a kept basis.

The vectors have entries in a few rows only, so that their part outside is written as w p - V c p, with w in those rows
and V c never formed.
"""

from __future__ import annotations

import numpy as np
import scipy.linalg

from pipeline.kernels.linalg import tall_qr

__all__ = ["independent", "orthonormalised", "outside", "outside_formed"]

_NONE = 1e-13  # of a vector of norm one: no more than rounding
_CLEAR = 1e-3  # squared sine to the basis from which on 1 - cosine^2 keeps its digits


def independent(b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Orthonormal columns w (m, q), and t (q, s) with b = w t, of any columns b (m, s); q is the rank of b.

    >>> w, t = independent(np.array([[3.0, 6.0, 0.0], [4.0, 8.0, 0.0]]))
    >>> w.shape, np.abs(w @ t).round(12).tolist()
    ((2, 1), [[3.0, 6.0, 0.0], [4.0, 8.0, 0.0]])
    """
    sizes = np.sqrt(np.einsum("ij,ij->j", b, b))
    sizes[sizes == 0] = 1.0
    # Columns of one size: what is small beside others may be all that is new in its direction.
    w, r, order = scipy.linalg.qr(b / sizes, mode="economic", pivoting=True, check_finite=False)
    rank = int(np.count_nonzero(np.abs(r.diagonal()) > _NONE))
    t = np.empty((rank, b.shape[1]))
    t[:, order] = r[:rank]
    return w[:, :rank], t * sizes


def outside(c: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """An orthonormal basis of what orthonormal vectors w have outside of an orthonormal V, from c = V^T w alone.

    Parameters
    ----------
    c : (k, q) array

    Returns
    -------
    p : (q, q) array
        Q = (w - V c) p has orthonormal columns.
    r : (q, q) array
        w = V c + Q r.
    None where a direction of w lies so nearly inside that products do not tell: `outside_formed` does.

    Examples
    --------
    >>> p, r = outside(np.array([[0.6]]))
    >>> p.tolist(), r.tolist()
    ([[1.25]], [[0.8]])
    """
    gram = -c.T @ c
    gram.flat[:: gram.shape[0] + 1] += 1.0
    values, vectors = np.linalg.eigh(gram)
    if values.size and values[0] < _CLEAR:
        return None
    sines = np.sqrt(values)
    return vectors / sines, sines[:, None] * vectors.T


def outside_formed(v: np.ndarray, at: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same at the price of all rows of V, for w that may lie inside of it.

    Parameters
    ----------
    v : (m, k) array
        Orthonormal columns.
    at : (j,) array of int
        The rows that w has entries in.
    w : (j, q) array
        These rows.

    Returns
    -------
    c : (k, q) array
    p : (q, o) array
        Of the o directions that are outside.
    r : (o, q) array
    """
    c = v[at].T @ w
    apart = -v @ c
    apart[at] += w
    more = v.T @ apart  # rounding leaves something inside; twice is enough
    apart -= v @ more
    _, r, order = scipy.linalg.qr(apart, mode="economic", pivoting=True, check_finite=False)
    rank = int(np.count_nonzero(np.abs(r.diagonal()) > _NONE))
    p, coefficients = np.zeros((w.shape[1], rank)), np.empty((rank, w.shape[1]))
    p[order[:rank]] = scipy.linalg.solve_triangular(r[:rank, :rank], np.eye(rank), check_finite=False)
    coefficients[:, order] = r[:rank]
    return c + more, p, coefficients


def orthonormalised(u: np.ndarray, s: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The decomposition of u diag(s) v^T, whose factors rounding has made a little oblique."""
    (p, r), (q, t) = tall_qr(u), tall_qr(v)
    f, values, gt = np.linalg.svd((r * s) @ t.T)
    return p @ f, values, q @ gt.T
