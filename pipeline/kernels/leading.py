"""Leading directions of a small matrix, soon found and roughly: what an iteration over a large one begins with."""

from __future__ import annotations

import numpy as np

from pipeline.kernels.blocks import doubled
from pipeline.kernels.linalg import eigh_descending, orthonormal, orthonormal_beside

__all__ = ["leading"]

_POWERS = 3


def leading(x: np.ndarray, l: int, rng: np.random.Generator) -> np.ndarray:
    """Orthonormal columns that about span the leading right singular vectors, by block Krylov iteration from the left.

    With K a basis of [R, C R, C^2 R], C = X X^H and R random, they are X^H K turned by the eigenvectors of K^H C K: of
    the left side, which is short, everything is orthogonalised, and the right side is as good as half a power more.

    Parameters
    ----------
    x : (m, d) array
        Finite, m at least 3 l.
    l : int
        How many.
    rng : Generator

    Returns
    -------
    (d, l) array
        In double precision.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> x = rng.standard_normal((90, 40)) * 0.5 ** np.arange(40)
    >>> found = leading(x, 4, rng)
    >>> bool(np.linalg.norm(found[4:]) < 0.2)
    True
    """

    def fresh() -> np.ndarray:
        return rng.standard_normal((len(x), l))

    parts = x.view(x.real.dtype)
    size = max(float(parts.max(initial=0.0)), -float(parts.min(initial=0.0)), 1e-30)  # products of more would overflow
    block, known, images, thin = orthonormal(fresh()), [], [], []
    for _ in range(_POWERS):
        known.append(block)
        thin.append((block / size).conj().T.astype(x.dtype) @ x)  # (l, d): BLAS runs along the rows of both
        images.append((x @ (thin[-1] / size).conj().T).astype(doubled(x.dtype)))
        block = orthonormal_beside(known, images[-1], fresh)
    basis = np.hstack(known)
    _, turn = eigh_descending(basis.conj().T @ np.hstack(images), l)
    return orthonormal(np.concatenate(thin).conj().T @ turn.astype(x.dtype))
