"""Leading directions of a small matrix, soon found and roughly: what an iteration over a large one begins with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.kernels.blocks import doubled, product_in_float64
from pipeline.kernels.linalg import eigh_descending, orthonormal, orthonormal_beside

__all__ = ["leading"]

_POWERS = 5


def leading(parts: Sequence[np.ndarray], l: int, rng: np.random.Generator) -> np.ndarray:
    """Orthonormal columns that about span the leading right singular vectors, by block Krylov iteration from the left.

    With K a basis of [R, C R, …, C^4 R], C = X X^H and R random, they are X^H K turned by its right singular vectors:
    of the left side, which is short, all is orthogonalised, and the right side is as good as half a power more.

    Parameters
    ----------
    parts : sequence of (m_i, d) arrays
        The rows of X, some after the other: finite, at least 5 l in all.
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
    >>> found = leading([x[:50], x[50:]], 4, rng)
    >>> bool(np.linalg.norm(found[4:]) < 0.2)
    True
    """

    m, d, dtype = sum(len(x) for x in parts), parts[0].shape[1], parts[0].dtype
    edges = np.cumsum([0, *(len(x) for x in parts)])

    def fresh() -> np.ndarray:
        return rng.standard_normal((m, l))

    size = max(1e-30, *(_largest(x.view(x.real.dtype)) for x in parts))  # products of more would overflow
    known, thin, part = [orthonormal(fresh())], np.zeros((_POWERS, l, d), dtype), np.empty((l, d), dtype)
    for power in thin:
        turned = (known[-1] / size).conj().T.astype(dtype)  # (l, m): BLAS runs along the rows of both
        for x, start in zip(parts, edges, strict=False):
            power += np.matmul(turned[:, start : start + len(x)], x, out=part)
        if len(known) < _POWERS:
            lens = (power / size).conj().T
            image = np.concatenate([x @ lens for x in parts], dtype=doubled(dtype))
            known.append(orthonormal_beside(known, image, fresh))
    right = thin.reshape(-1, d).conj().T  # X^H K
    _, turn = eigh_descending(product_in_float64(right), l)
    return orthonormal(right @ turn.astype(dtype))


def _largest(x: np.ndarray) -> float:
    return max(float(x.max(initial=0.0)), -float(x.min(initial=0.0)))
