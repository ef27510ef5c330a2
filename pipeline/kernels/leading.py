"""Leading directions out of products that are at hand, without a certificate: what an iteration begins with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.kernels.blocks import doubled
from pipeline.kernels.linalg import eigh_descending, orthonormal

__all__ = ["leading"]


def leading(known: Sequence[np.ndarray], images: Sequence[np.ndarray], l: int, roundoff: float) -> np.ndarray:
    """Orthonormal columns (m, l) that span the leading eigenvectors of W (K^H W)^-1 W^H, Nystrom's approximation of C.

    They are the left singular vectors of W (K^H W + nu)^-1/2, with a shift nu of what is rounded off. These come from
    the small matrices K^H W and W^H W: nothing is made that is as large as K.

    Parameters
    ----------
    known : sequence of (m, q_i) arrays
        Blocks of K, orthonormal.
    images : sequence of (m, q_i) arrays
        Those of W = C K, for a positive semidefinite C.
    l : int
        How many; q at most.
    roundoff : float
        Of the products, relative to the largest eigenvalue.

    Returns
    -------
    (m, l) array
        In double precision.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> c = np.diag(0.5 ** np.arange(40))
    >>> k = np.linalg.qr(rng.standard_normal((40, 12)))[0]
    >>> found = leading([k[:, :6], k[:, 6:]], [c @ k[:, :6], c @ k[:, 6:]], 3, 1e-15)
    >>> bool(np.linalg.norm(found[6:]) < 0.2)
    True
    """
    inner, squares = _products(known, images), _products(images, images)
    values, turn = eigh_descending((inner + inner.conj().T) / 2)
    half = turn / np.sqrt(np.maximum(values, 0.0) + max(roundoff * float(values[0]), np.finfo(float).tiny))
    half = half @ eigh_descending(half.conj().T @ squares @ half, l)[1]
    parts = np.split(half, np.cumsum([image.shape[1] for image in images])[:-1])
    return orthonormal(sum(image @ part for image, part in zip(images, parts, strict=True)))


def _products(left: Sequence[np.ndarray], right: Sequence[np.ndarray]) -> np.ndarray:
    """L^H R (q, q) of two matrices that are there in blocks."""
    return np.block([[a.conj().T @ b for b in right] for a in left]).astype(doubled(left[0].dtype), copy=False)
