"""Regressions by density power divergence: entries that do not fit lose their weight exp(-alpha e^2 / (2 sigma^2)).

Roy, Basu and Ghosh (2021, arXiv 2109.10680) after Basu, Harris, Hjort and Jones (1998).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

__all__ = ["Fit", "Sums", "column_sums_of", "errors_scale", "fitted_rows", "layered", "refined", "sizes_of"]

_TURNS, _EACH = 60, 3  # of the fixed point of a row, and of each column of it
_TYPICAL = 3.0  # units that the median entry of an ordinary row stays below
_PRIOR = 0.1  # of the squared scale, that scores are held back by
_GUESSED = 1e-3  # what a row counts for that does not determine its scores
_ALTERNATIONS, _LAYER_TOL = 60, 1e-6
_LEAST = 64  # powers of two below one unit, and above, that errors are told apart by


class Fit(NamedTuple):
    """Rows as they are fitted: scores (m, k), weights (m, d) and errors (m, d) of their entries."""

    scores: np.ndarray
    weights: np.ndarray
    errors: np.ndarray


class Sums(NamedTuple):
    """What columns are fitted from, added over rows.

    Products (d, k + 1, k + 1) and (d, k + 1) of [scores, 1] with the weights; moments (k, k) and sums (k,) of the
    scores; weighted squares of the errors, rows, how many of these keep too little weight to determine their scores,
    how many entries lost more than half of their weight, and how many errors there are of each power of two.
    """

    normal: np.ndarray
    right: np.ndarray
    moments: np.ndarray
    middle: np.ndarray
    squares: float
    rows: int
    guessed: int
    outlying: int
    sizes: np.ndarray

    def __add__(self, other: tuple) -> Sums:
        return Sums(*(a + b for a, b in zip(self, other, strict=True)))


def fitted_rows(
    z: np.ndarray, basis: np.ndarray, spread: np.ndarray, alpha: float, sigma: np.ndarray, tol: float = 1e-9
) -> Fit:
    """Scores of rows (m, d) on the columns of `basis` (d, k), each row by itself; until they move by less than `tol`.

    A row begins at zero, where entries that lie have no weight, and is fitted to one column after the other, as the
    published algorithm does. Then all scores are fitted at once, while the scale comes down by halves to `sigma` (d,)
    and scores are held back as far as their `spread` (k,), their variances, makes them unlikely: where a row has no
    entries to spare, several fits leave one out, and the likeliest is wanted.
    """
    m, k = len(z), basis.shape[1]
    top = np.maximum(np.median(np.abs(z), axis=1, keepdims=True) / _TYPICAL, 1.0) if z.size else np.ones((m, 1))
    shy = 1 / np.maximum(spread, 1e-12 * max(float(spread.max(initial=0.0)), np.finfo(float).tiny))
    if not alpha:
        scores = z @ basis @ np.linalg.pinv(basis.T @ basis)
        return Fit(scores, np.ones(z.shape, np.float32), z - scores @ basis.T)
    scores, errors = _in_turn(z, basis, shy, alpha, top)
    pairs = (basis[:, :, None] * basis[:, None, :]).reshape(len(basis), -1).astype(np.float32)
    floor = sigma if np.ptp(sigma) else sigma[:1]
    finest, scale, active = float(sigma.min(initial=1.0)), top, np.arange(m)
    weights = np.empty(z.shape, np.float32)
    for _ in range(_TURNS):
        w = _weights(errors[active], np.maximum(scale, floor), alpha)
        last = scale <= finest
        held = _PRIOR * np.square(np.maximum(scale, finest)) * shy
        normal = (w @ pairs).reshape(-1, k, k).astype(np.float64)
        # In the form of a correction, so that rounding of the weights does not stay in the answer.
        step = _solved(normal, (w * errors[active]) @ basis - held * scores[active], held)
        scores[active] += step
        errors[active] = z[active] - scores[active] @ basis.T
        weights[active] = w
        moving = np.abs(step).max(axis=1, keepdims=True) > tol * np.abs(scores[active]).max(axis=1, keepdims=True)
        going = (moving | ~last)[:, 0]
        active, scale = active[going], np.maximum(0.5 * scale[going], finest)
        if not active.size:
            break
    return Fit(scores, weights, errors)


def _in_turn(
    z: np.ndarray, basis: np.ndarray, shy: np.ndarray, alpha: float, scale: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Scores (m, k) and errors of rows that are fitted to one column after the other."""
    scores, left = np.zeros((len(z), basis.shape[1])), z.copy()
    for j, b in enumerate(basis.T):
        for _ in range(_EACH):
            w = _weights(left, scale, alpha)
            held = _PRIOR * np.square(scale[:, 0]) * shy[j]
            step = ((w * left) @ b - held * scores[:, j]) / np.maximum(w @ (b * b) + held, np.finfo(float).tiny)
            scores[:, j] += step
            left -= step[:, None] * b
    return scores, left


def _weights(errors: np.ndarray, scale: np.ndarray, alpha: float) -> np.ndarray:
    """exp(-alpha e^2 / (2 s^2)) in single precision, which is all that a weight deserves."""
    ratio = (errors * (np.sqrt(0.5 * alpha) / scale)).astype(np.float32)
    np.square(ratio, out=ratio)
    np.negative(ratio, out=ratio)
    return np.exp(ratio, out=ratio)


def _solved(normal: np.ndarray, right: np.ndarray, ridge: np.ndarray | float = 0.0) -> np.ndarray:
    """Solutions of many small systems with a ridge (m, k); what has no weight at all is zero."""
    k = normal.shape[-1]
    least = 1e-12 * np.trace(normal, axis1=-2, axis2=-1)[:, None] + 1e-300
    return np.linalg.solve(normal + (least + ridge)[:, None, :] * np.eye(k), right[..., None])[..., 0]


def layered(z: np.ndarray, k: int, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """Basis (d, k) of rows in memory, and the variances (k,) of their scores.

    The published algorithm, but from a start that no far entry has a part in.

    Rank-one layers, each of what the ones before leave, by alternating regressions at scale 1.
    """
    if not alpha:
        values, right = np.linalg.svd(z, full_matrices=False)[1:]
        return right[:k].T, np.square(values[:k]) / len(z)
    unit = np.ones((1, 1))
    found, spread, left = [], np.zeros(k), z
    for j in range(k):
        near = left * _weights(left, unit, alpha)
        b = np.linalg.svd(near, full_matrices=False)[2][0]
        a, d = np.zeros(len(z)), np.zeros(len(b))
        for _ in range(_ALTERNATIONS):
            before = b
            a = _slopes(left, b, a, alpha)
            a = a / max(float(np.linalg.norm(a)), np.finfo(float).tiny)
            d = _slopes(left.T, a, d, alpha)
            length = float(np.linalg.norm(d))
            b, a = d / max(length, np.finfo(float).tiny), a * length
            if np.linalg.norm(b - before) <= _LAYER_TOL:
                break
        found.append(b)
        left, spread[j] = left - np.outer(a, b), float(a @ a) / len(z)
    return np.linalg.qr(np.array(found).T)[0], spread


def _slopes(z: np.ndarray, b: np.ndarray, slopes: np.ndarray, alpha: float) -> np.ndarray:
    """(m,) slopes of rows on b, each from where it is."""
    unit = np.ones((1, 1))
    for _ in range(_EACH):
        w = _weights(z - np.outer(slopes, b), unit, alpha)
        slopes = (w * z) @ b / np.maximum(w @ (b * b), np.finfo(float).tiny)
    return slopes


def column_sums_of(fit: Fit, z: np.ndarray) -> Sums:
    """What the columns are fitted from, of some rows."""
    one = np.column_stack([fit.scores, np.ones(len(z))])
    k = one.shape[1]
    pairs = (one[:, :, None] * one[:, None, :]).reshape(len(z), -1)
    # What is left of a row must determine its scores: else these are guesses, and columns would be fitted to them.
    told = np.clip(fit.weights.sum(axis=1, keepdims=True) - fit.scores.shape[1] + 1, _GUESSED, 1.0)
    weights = fit.weights * told
    return Sums(
        (weights.T @ pairs).reshape(-1, k, k),
        (weights * z).T @ one,
        fit.scores.T @ fit.scores,
        fit.scores.sum(axis=0),
        float((fit.weights * np.square(fit.errors)).sum()),
        len(z),
        int((told < 0.5).sum()),
        int((fit.weights < 0.5).sum()),
        sizes_of(fit.errors),
    )


def sizes_of(errors: np.ndarray) -> np.ndarray:
    """How many errors there are of each power of two."""
    powers = np.clip(np.frexp(errors)[1] + _LEAST, 0, 2 * _LEAST)
    return np.bincount(powers.ravel(), minlength=2 * _LEAST + 1)


def errors_scale(sizes: np.ndarray) -> float:
    """Standard deviation of the errors: 1.4826 times their median size, from the numbers of errors of each size."""
    share = np.cumsum(sizes) / sizes.sum()
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
