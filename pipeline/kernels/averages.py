"""Averages of orthonormal bases: what the aggregations of subspaces and flags share, as pure functions on arrays.

A basis is (k, d) with orthonormal rows; P = V^T V is its projector. Nothing (d, d) is ever formed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from pipeline.kernels.linalg import orthonormal

__all__ = ["compressed", "distances", "irls", "leading_rows", "polar_rows", "procrustes"]


def leading_rows(stacked: np.ndarray, k: int) -> np.ndarray:
    """(k, d) leading right singular vectors of a few long rows (r, d), r >= k.

    >>> np.abs(leading_rows(np.array([[3.0, 0.0, 0.0], [0.0, 1.0, 0.0]]), 1)).tolist()
    [[1.0, 0.0, 0.0]]
    """
    q = orthonormal(stacked.T)
    _, _, vt = np.linalg.svd(stacked @ q, full_matrices=False)
    return vt[:k] @ q.T


def polar_rows(a: np.ndarray) -> np.ndarray:
    """The orthonormal rows nearest to a (k, d): its polar factor."""
    u, _, vt = np.linalg.svd(a, full_matrices=False)
    return u @ vt


def procrustes(basis: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """The part of `basis` that lies nearest to `reference` (k, d), turned to it (Schönemann 1966): (k, d).

    A basis of fewer rows than the reference gives rows of rank as many.
    """
    u, _, vt = np.linalg.svd(reference @ basis.T, full_matrices=False)
    return u @ vt @ basis


def distances(bases: Sequence[np.ndarray], center: np.ndarray) -> np.ndarray:
    """||P_j - P||_F of each basis to `center`; from sines, so that small distances keep their digits."""
    out = np.empty(len(bases))
    for j, v in enumerate(bases):
        overlap = v @ center.T
        a, b = np.linalg.norm(v - overlap @ center), np.linalg.norm(center - overlap.T @ v)
        out[j] = np.hypot(a, b)
    return out


def compressed(bases: Sequence[np.ndarray]) -> tuple[np.ndarray, list[np.ndarray]]:
    """An orthonormal basis (r, d) of all that the bases span, and each of them in its coordinates (k, r)."""
    stacked = np.concatenate(bases)
    if len(stacked) >= stacked.shape[1]:
        return np.eye(stacked.shape[1]), list(bases)
    span = orthonormal(stacked.T).T
    return span, [v @ span.T for v in bases]


def irls(
    center: np.ndarray,
    average: Callable[[np.ndarray, np.ndarray], np.ndarray],
    apart: Callable[[np.ndarray], np.ndarray],
    weights: np.ndarray,
    floor: float = 1e-8,
    tol: float = 1e-12,
    max_steps: int = 1000,
) -> tuple[np.ndarray, np.ndarray, int, bool]:
    """The minimiser of sum_j w_j dist_j by iteratively reweighted averages (Weiszfeld 1937).

    Every third step is a leap along the last two, taken where it lowers the sum: near a member that many agree with
    plain steps become ever shorter.

    Parameters
    ----------
    center : array
        Where to start.
    average : function
        (weights, center) to a center that does not raise sum_j weights_j dist_j^2.
    apart : function
        A center to the distances (m,).
    weights : (m,) array
        What the distances count.
    floor : float
        Distances count as at least so much, which keeps the steps finite.

    Returns
    -------
    center, trust (m,) that sums to 1, steps, and whether the objective came to rest
    """
    far = apart(center)
    cost = _huber(far, weights, floor)
    trail = [np.maximum(far, floor)]
    for step in range(1, max_steps + 1):
        leaps = len(trail) == 3
        pull = weights / (_leapt(trail, floor) if leaps else trail[-1])
        new = average(pull, center)
        far = apart(new)
        cost_new = _huber(far, weights, floor)
        if leaps and cost_new >= cost:
            trail = trail[-1:]  # no shortcut: on by plain steps
            continue
        if cost_new > cost:  # rounding: it cannot be improved
            return center, pull / pull.sum(), step, True
        gain, center, cost = cost - cost_new, new, cost_new
        trail = [np.maximum(far, floor)] if leaps else [*trail, np.maximum(far, floor)]
        if not leaps and gain <= tol * max(cost + gain, floor):
            return center, pull / pull.sum(), step, True
    return center, pull / pull.sum(), max_steps, False


def _leapt(trail: Sequence[np.ndarray], floor: float) -> np.ndarray:
    """Where three distances of a row lead to, from their logarithms (SQUAREM, Varadhan and Roland 2008)."""
    a, b, c = np.log(trail)
    step, bend = b - a, (c - b) - (b - a)
    size = np.linalg.norm(step) / max(np.linalg.norm(bend), np.finfo(float).tiny)
    limit = -2 * np.log(floor)  # what goes beyond would outweigh all others to the last digit
    return np.exp(np.clip(a + 2 * size * step + size**2 * bend, -limit, limit))


def _huber(far: np.ndarray, weights: np.ndarray, floor: float) -> float:
    """What the floored weights minimise: the distance beyond the floor, a parabola within."""
    return float(weights @ np.where(far > floor, far, (far**2 / floor + floor) / 2))
