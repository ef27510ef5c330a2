"""Small dense factorisations that every solver shares: pure functions on arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import scipy.linalg

from pipeline.kernels.blocks import doubled

__all__ = [
    "deflated",
    "eigh_descending",
    "fix_signs",
    "orthonormal",
    "orthonormal_beside",
    "principal_angles",
    "tall_qr",
]

_MOST = 0.1  # of a column: what projecting it leaves of its part in the span is then a few units of rounding
_INDEPENDENT = 1e-4  # of columns of norm one: their Gram matrix is then known well enough


def eigh_descending(a: np.ndarray, k: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues (largest first) and eigenvectors (as columns) of a symmetric or Hermitian matrix.

    Parameters
    ----------
    a : (m, m) array
        Symmetric; only its lower triangle is read.
    k : int, optional
        How many of the largest; all by default.
    """
    m = a.shape[0]
    # A subset pays only where it is a small part; LAPACK's may return fewer than asked for where eigenvalues lie close.
    if k is not None and k <= m // 4:
        values, vectors = scipy.linalg.eigh(a, subset_by_index=(m - k, m - 1), check_finite=False)
        if values.size == k:
            return values[::-1], vectors[:, ::-1]
    values, vectors = np.linalg.eigh(a)
    return values[::-1][:k], vectors[:, ::-1][:, :k]


def fix_signs(components: np.ndarray) -> np.ndarray:
    """What each row is to be multiplied by so that its largest-magnitude entry is real and positive.

    Signs (+1 or -1) of real rows, phases of complex ones.

    >>> fix_signs(np.array([[0.1, -2.0], [3.0, 1.0]]))
    array([-1.,  1.])
    """
    if components.shape[1] == 0:
        return np.ones(components.shape[0])
    largest = np.argmax(np.abs(components), axis=1)
    entries = components[np.arange(components.shape[0]), largest]
    if entries.dtype.kind != "c":
        return np.where(entries < 0, -1.0, 1.0)
    size = np.abs(entries)
    return np.divide(entries.conj(), size, out=np.ones_like(entries), where=size > 0)


def tall_qr(a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """QR of a tall matrix (m, l) in double precision: orthonormal columns (m, l), and R (l, l) upper triangular.

    Cholesky QR twice (Yamamoto, Nakatsukasa, Yanagisawa and Fukaya 2015), which takes a few large products where
    Householder's takes many small ones, that threads of a busy machine wait for each other in; Householder's where
    columns are not independent enough. All by NumPy: SciPy has another BLAS, whose threads would fight for the cores
    with those of NumPy's, which still wait busily after a product.
    """
    a = np.asarray(a, dtype=doubled(a.dtype))
    sizes = np.linalg.norm(a, axis=0)
    if a.shape[1] and a.shape[0] >= a.shape[1] and np.all(sizes > 0) and np.isfinite(sizes).all():
        q, r, steps = a / sizes, np.diag(sizes).astype(a.dtype), 2
        try:
            for _ in range(steps):
                root = np.linalg.cholesky(q.conj().T @ q).conj().T
                if np.diag(root).real.min() < _INDEPENDENT:
                    break
                q = q @ np.linalg.inv(root)
                r = root @ r
            else:
                return q, r
        except np.linalg.LinAlgError:
            pass
    return np.linalg.qr(a)


def orthonormal(a: np.ndarray) -> np.ndarray:
    """Orthonormal basis (m, l) of the columns of a tall matrix, in double precision."""
    return tall_qr(a)[0]


def deflated(known: Sequence[np.ndarray], a: np.ndarray, shares: np.ndarray | None = None) -> np.ndarray:
    """What is left of the columns of a (m, l) outside of the span of the orthonormal columns of blocks (m, q_i).

    `shares` (q, l) are their products with a, where they are known.
    """
    start = 0
    for block in known:
        stop = start + block.shape[1]
        a = a - block @ (block.conj().T @ a if shares is None else shares[start:stop])
        start = stop
    return a


def orthonormal_beside(
    known: Sequence[np.ndarray], a: np.ndarray, spare: Callable[[], np.ndarray], shares: np.ndarray | None = None
) -> np.ndarray:
    """Orthonormal columns (m, l) that span what a (m, l) adds to those of blocks (m, q_i), all of them orthonormal.

    Columns that add nothing are replaced by those that `spare` makes (m, l), which are to be random. One projection is
    enough where it leaves most of every column, two where columns are independent (Giraud, Langou and Rozloznik 2005);
    replaced ones take one more.
    """
    replaced = False
    for turn in range(3):
        before = np.linalg.norm(a, axis=0)
        q, r = tall_qr(deflated(known, a, None if turn else shares))
        left = np.abs(np.diag(r))
        lost = left <= 1e-14 * before
        if (turn and not lost.any() and not replaced) or np.all(left > _MOST * before):
            break
        replaced = bool(lost.any())
        a = np.where(lost, spare(), q) if replaced else q
    return q


def principal_angles(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Principal angles in radians, largest first, between the row spaces of two sets of orthonormal rows.

    Small angles come from sines and large ones from cosines (Björck and Golub 1973), so that both keep their digits.

    >>> principal_angles(np.eye(3)[:1], np.array([[0.6, 0.8, 0.0]]))
    array([0.92729522])
    """
    if a.shape[0] < b.shape[0]:
        a, b = b, a
    overlap = a @ b.conj().T
    cosine = np.clip(np.linalg.svd(overlap, compute_uv=False), 0.0, 1.0)
    sine = np.clip(np.linalg.svd(b.conj().T - a.conj().T @ overlap, compute_uv=False)[::-1][: b.shape[0]], 0.0, 1.0)
    # Cosines fall as sines rise: both lists are now smallest angle first.
    angles = np.where(cosine**2 > 0.5, np.arcsin(sine), np.arccos(cosine))
    return angles[::-1]
