"""Regressions by density power divergence: entries that do not fit lose their weight exp(-alpha e^2 / (2 sigma^2)).

Roy, Basu and Ghosh (2021, arXiv 2109.10680) after Basu, Harris, Hjort and Jones (1998).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

__all__ = ["Fit", "Sums", "column_sums_of", "errors_scale", "fitted_rows", "refined"]

_TURNS = 60  # of the fixed point of a row
_LEAST = 64  # powers of two below one unit, and above, that errors are told apart by


class Fit(NamedTuple):
    """Rows as they are fitted: scores (m, k), weights (m, d) and errors (m, d) of their entries."""

    scores: np.ndarray
    weights: np.ndarray
    errors: np.ndarray


class Sums(NamedTuple):
    """What columns are fitted from, added over rows.

    Products (d, k + 1, k + 1) and (d, k + 1) of [scores, 1] with the weights; moments (k, k) and sums (k,) of the
    scores; weighted squares of the errors, rows, how many entries lost more than half of their weight, and how many
    errors there are of each power of two.
    """

    normal: np.ndarray
    right: np.ndarray
    moments: np.ndarray
    middle: np.ndarray
    squares: float
    rows: int
    outlying: int
    sizes: np.ndarray

    def __add__(self, other: tuple) -> Sums:
        return Sums(*(a + b for a, b in zip(self, other, strict=True)))


def fitted_rows(z: np.ndarray, basis: np.ndarray, alpha: float, sigma: np.ndarray) -> Fit:
    """Scores of rows (m, d) on the columns of `basis` (d, k), each row by itself.

    The scale comes down by halves to `sigma` (d,), from where no entry of a row is far off yet: so the row finds its
    way from least squares, which entries that lie may have led astray.
    """
    k = basis.shape[1]
    pairs = (basis[:, :, None] * basis[:, None, :]).reshape(len(basis), -1)
    scores = z @ basis @ np.linalg.pinv(basis.T @ basis)
    errors, weights = z - scores @ basis.T, np.ones_like(z)
    scale = np.maximum(0.5 * np.abs(errors).max(axis=1, initial=0.0), 1.0)[:, None]
    finest = float(sigma.min(initial=1.0))
    for _ in range(_TURNS if alpha else 0):
        weights = np.exp(-0.5 * alpha * np.square(errors / np.maximum(scale, sigma)))
        before, scores = scores, _solved((weights @ pairs).reshape(-1, k, k), (weights * z) @ basis)
        errors = z - scores @ basis.T
        settled = np.abs(scores - before).max(initial=0.0) <= 1e-9 * np.abs(scores).max(initial=1e-300)
        if settled and (scale <= finest).all():
            break
        scale = 0.5 * scale
    return Fit(scores, weights, errors)


def _solved(normal: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Solutions of many small systems; what has no weight at all is zero."""
    k = normal.shape[-1]
    ridge = 1e-12 * np.trace(normal, axis1=-2, axis2=-1) + 1e-300
    return np.linalg.solve(normal + ridge[:, None, None] * np.eye(k), right[..., None])[..., 0]


def column_sums_of(fit: Fit, z: np.ndarray) -> Sums:
    """What the columns are fitted from, of some rows."""
    one = np.column_stack([fit.scores, np.ones(len(z))])
    k = one.shape[1]
    pairs = (one[:, :, None] * one[:, None, :]).reshape(len(z), -1)
    return Sums(
        (fit.weights.T @ pairs).reshape(-1, k, k),
        (fit.weights * z).T @ one,
        fit.scores.T @ fit.scores,
        fit.scores.sum(axis=0),
        float((fit.weights * np.square(fit.errors)).sum()),
        len(z),
        int((fit.weights < 0.5).sum()),
        np.bincount(np.clip(np.frexp(fit.errors)[1] + _LEAST, 0, 2 * _LEAST).ravel(), minlength=2 * _LEAST + 1),
    )


def errors_scale(sums: Sums) -> float:
    """Standard deviation of the errors: 1.4826 times their median size, from the numbers of errors of each size."""
    share = np.cumsum(sums.sizes) / sums.sizes.sum()
    power = int(np.searchsorted(share, 0.5))
    below = share[power - 1] if power else 0.0
    within = (0.5 - below) / max(share[power] - below, 1e-12)
    return float(1.4826 * 2.0 ** (power - _LEAST - 1) * (1 + within))


def refined(sums: Sums, center: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Basis (d, k), orthonormal and along the axes of the scores; shift (d,) of the center; their singular values."""
    k = len(sums.middle)
    if center:
        solved = _solved(sums.normal, sums.right)
        factor, shift = solved[:, :k], solved[:, k]
        middle = sums.middle / sums.rows
        moments = sums.moments - sums.rows * np.outer(middle, middle)
        shift = shift + factor @ middle
    else:
        factor, shift = _solved(sums.normal[:, :k, :k], sums.right[:, :k]), np.zeros(len(sums.right))
        moments = sums.moments
    values, turn = np.linalg.eigh(moments)
    root = (turn * np.sqrt(np.maximum(values, 0.0))) @ turn.T
    vectors, lengths, _ = np.linalg.svd(factor @ root, full_matrices=False)
    return vectors, shift, lengths
