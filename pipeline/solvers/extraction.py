"""Eigenpairs of C out of products that are at hand: Rayleigh-Ritz and Nystrom, each with its certificate.

K is an orthonormal basis (m, q) and W = C K its images under a positive semidefinite C.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.kernels.blocks import strips
from pipeline.kernels.certificate import nystrom_bounds, sine_bounds, sines_of
from pipeline.kernels.linalg import eigh_descending, orthonormal

__all__ = ["Leading", "Products", "Ritz", "nystrom", "rayleigh_ritz", "recurrent"]

Choice = Callable[[np.ndarray], int]
_TINY = 1e-280


@dataclass(frozen=True)
class Products:
    """K (m, q), W = C K (m, q), K^H W (q, q), and the part of W outside of K (m, q)."""

    basis: np.ndarray
    images: np.ndarray
    inner: np.ndarray
    leak: np.ndarray

    @classmethod
    def of(cls, basis: np.ndarray, images: np.ndarray) -> Products:
        """All of it from K and W."""
        inner = basis.conj().T @ images
        return cls(basis, images, (inner + inner.conj().T) / 2, images - basis @ inner)


@dataclass(frozen=True)
class Ritz:
    """All Ritz values (q,); of leading ones vectors, their images C v, and the part of those outside K, all (m, w)."""

    theta: np.ndarray
    vectors: np.ndarray
    images: np.ndarray
    leak: np.ndarray


@dataclass(frozen=True)
class Leading:
    """The answer: eigenvalues (k,), eigenvectors (m, k), norms (k,) of C v - theta v, and sine bounds (k,)."""

    values: np.ndarray
    vectors: np.ndarray
    sizes: np.ndarray
    sines: np.ndarray


def rayleigh_ritz(
    products: Products, theta: np.ndarray, turn: np.ndarray, k: int, width: int, outside: float, rounding: float
) -> tuple[Leading, Ritz]:
    """The best of what K spans.

    Parameters
    ----------
    products : Products
    theta, turn : (q,) and (q, q) arrays
        Eigenvalues of K^H C K, largest first, and its eigenvectors.
    k, width : int
        How many are wanted, and how many vectors the next pass may need.
    outside : float
        Bound on the norm of what K leaves of C; -inf where it spans everything.
    rounding : float
        Bound on the norm of the error of W.
    """
    leak = products.leak @ turn
    lead = turn[:, :width]
    ritz = Ritz(theta, products.basis @ lead, products.images @ lead, leak[:, :width])
    sines = sine_bounds(theta, leak.conj().T @ leak, outside, rounding, k)
    sizes = np.linalg.norm(leak[:, :k], axis=0) + rounding
    return Leading(theta[:k], ritz.vectors[:, :k], sizes, sines), ritz


def recurrent(
    known: Sequence[np.ndarray],
    inner: np.ndarray,
    following: np.ndarray,
    below: np.ndarray,
    k: int,
    outside: float,
    rounding: float,
) -> tuple[Leading, Ritz]:
    """The best of what K spans, where C K = K T + Q B: the same as `rayleigh_ritz`, and no image is needed.

    Parameters
    ----------
    known : list of (m, q_i) arrays
        Blocks of K.
    inner, below : (q, q) and (l, q) arrays
        T and B.
    following : (m, l) array
        Q, orthonormal and orthogonal to K.
    k, outside, rounding
        As for `rayleigh_ritz`; the last counts what the recurrence leaves out, too.
    """
    theta, turn = eigh_descending(inner)
    vectors, start = np.zeros((len(following), k), inner.dtype), 0
    for block in known:
        vectors += block @ turn[start : start + block.shape[1], :k]
        start += block.shape[1]
    reach = below @ turn
    leak = following @ reach[:, :k]
    sines = sine_bounds(theta, reach.conj().T @ reach, outside, rounding, k)
    sizes = np.linalg.norm(reach[:, :k], axis=0) + rounding
    return Leading(theta[:k], vectors, sizes, sines), Ritz(theta, vectors, vectors * theta[:k] + leak, leak)


def nystrom(products: Products, choose: Choice, energy: float, outside: float, rounding: float) -> Leading:
    """Eigenpairs of W (K^H W)^-1 W^H: worth half a pass more than Rayleigh-Ritz.

    With a shift nu, W' = W + nu K and K^H W' = R^H R, they are the left singular vectors of W' R^-1 and its squared
    singular values less the shift as far as they lie in K (Tropp, Yurtsever, Udell and Cevher 2017, algorithm 3). What
    is left of C + nu, E = C + nu - W' (K^H W')^-1 W'^H, is positive semidefinite, vanishes on K and is no more than
    what K leaves of C: residuals are E u, and so at most ||E|| times the part of u outside K. A shift of twice the
    rounding errors keeps all of this true for the products as they were computed.

    Parameters
    ----------
    products : Products
    choose : function
        From all eigenvalues (q,) to the number that is wanted.
    energy : float
        Trace of C.
    outside, rounding : float
        As for `rayleigh_ritz`.
    """
    size = float(np.linalg.norm(products.inner, 2))
    shift = max(np.finfo(np.float64).eps * size * np.sqrt(products.basis.shape[0]), 2 * rounding, _TINY)
    root = np.linalg.cholesky(products.inner + shift * np.eye(len(products.inner))).conj().T
    unroot = np.linalg.inv(root)
    factor = products.images + shift * products.basis
    for strip in strips(factor):  # in place: it may be as large as all that is known
        strip[:] = strip @ unroot
    squares, turn = eigh_descending(factor.conj().T @ factor)
    k = choose(np.maximum(squares - shift, 0.0))
    vectors = orthonormal(factor @ turn[:, :k])
    back = unroot @ turn
    # Inner products of the parts outside K, each times the root of its value; what rounds off there is added.
    parts = products.leak.conj().T @ products.leak
    tilt = back.conj().T @ parts @ back
    tilt += np.diag(len(tilt) * np.finfo(np.float64).eps * np.linalg.norm(parts) * np.sum(np.abs(back) ** 2, axis=0))
    q = len(squares)
    trace = max(energy + q * shift - float(squares.sum()), 0.0) + 1e-14 * energy + 2 * q * rounding
    left = min(max(outside, 0.0) + 2 * rounding, trace) + shift
    away, rest = nystrom_bounds(np.maximum(squares, 0.0), tilt, left, k)
    sines = sines_of(left * away, squares[:k], rest, 2 * rounding + shift)
    # The shift has added to a vector's value as far as the vector lies in K.
    values = np.maximum(squares[:k] - shift * (1 - away**2), 0.0)
    return Leading(values, vectors, left * away + 2 * rounding + shift, sines)
