"""Averages on flag manifolds under the chordal metric (Mankovich and Birdal 2023), as pure functions on arrays.

A flag of type (d_1 < … < d_r) is a basis (d_r, d) cut in blocks X_i of m_i = d_i - d_(i-1) rows; only the span of each
block counts. d_c^2(X, Y) = sum_i (m_i - ||X_i Y_i^T||_F^2). The mean minimises a concave function on the Stiefel
manifold, so that replacing it by its tangent, which a polar factor minimises, never raises it: no step size.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from pipeline.kernels.averages import irls, leading_rows, polar_rows
from pipeline.kernels.linalg import orthonormal

__all__ = ["blocks_of", "chordal_mean", "chordal_median", "chordal_squares"]

_MAX_STEPS = 5000


def blocks_of(flag_type: Sequence[int]) -> list[slice]:
    """The rows of each block.

    >>> blocks_of((1, 3, 5))
    [slice(0, 1, None), slice(1, 3, None), slice(3, 5, None)]
    """
    edges = (0, *flag_type)
    return [slice(a, b) for a, b in pairwise(edges)]


def chordal_squares(bases: Sequence[np.ndarray], center: np.ndarray, flag_type: Sequence[int]) -> np.ndarray:
    """d_c^2 of each flag to `center`; a block of fewer rows counts those that it has."""
    out = np.zeros(len(bases))
    for j, x in enumerate(bases):
        for block in blocks_of(flag_type):
            # m - ||X Y^T||^2 as the part of X outside of Y, whose digits do not cancel.
            out[j] += np.sum((x[block] - x[block] @ center[block].T @ center[block]) ** 2)
    return out


def chordal_mean(
    bases: Sequence[np.ndarray], weights: np.ndarray, flag_type: Sequence[int], start: np.ndarray | None = None
) -> tuple[np.ndarray, int, bool]:
    """The flag (d_r, d) of least sum_j w_j d_c^2, the steps it took, and whether they came to rest.

    Parameters
    ----------
    bases : sequence of (d_r, d) arrays
    weights : (m,) array
    flag_type : increasing ints
    start : (d_r, d) array, optional
        Where to start; default: the better of a greedy choice, block by block, and the polar factor of the mean.
    """
    stacks = [
        np.concatenate([np.sqrt(w) * x[block] for x, w in zip(bases, weights, strict=True)])
        for block in blocks_of(flag_type)
    ]
    if len(flag_type) == 1:  # Grassmann: the closed form
        return leading_rows(stacks[0], flag_type[0]), 1, True
    blocks = blocks_of(flag_type)

    def gain(y: np.ndarray) -> float:
        return float(sum(np.sum((s @ y[b].T) ** 2) for s, b in zip(stacks, blocks, strict=True)))

    if start is None:
        full = [w * x for x, w in zip(bases, weights, strict=True) if len(x) == flag_type[-1]]
        starts = [_greedy(stacks, flag_type), *([polar_rows(sum(full))] if full else [])]
        start = max(starts, key=gain)
    y, value = start, gain(start)
    total = float(sum(np.sum(s**2) for s in stacks))
    for step in range(1, _MAX_STEPS + 1):
        y_new = polar_rows(np.concatenate([y[b] @ s.T @ s for s, b in zip(stacks, blocks, strict=True)]))
        value_new = gain(y_new)
        if value_new - value <= 1e-15 * total:
            return (y_new if value_new > value else y), step, True
        y, value = y_new, value_new
    return y, _MAX_STEPS, False


def chordal_median(
    bases: Sequence[np.ndarray], weights: np.ndarray, flag_type: Sequence[int]
) -> tuple[np.ndarray, np.ndarray, int, bool]:
    """The flag of least sum_j w_j d_c, with the weight that each had, the steps, and whether they came to rest.

    It is not convex: the search starts at the mean and at the flag among `bases` that is nearest to all others.
    """

    def apart(center: np.ndarray) -> np.ndarray:
        return np.sqrt(chordal_squares(bases, center, flag_type))

    def average(pull: np.ndarray, center: np.ndarray) -> np.ndarray:
        return chordal_mean(bases, pull, flag_type, center)[0]

    mean = chordal_mean(bases, weights, flag_type)[0]
    full = [x for x in bases if len(x) == flag_type[-1]]
    starts = [mean, *([min(full, key=lambda x: float(weights @ apart(x)))] if 0 < len(full) <= 200 else [])]
    found = [irls(start, average, apart, weights) for start in starts]
    return min(found, key=lambda f: float(weights @ apart(f[0])))


def _greedy(stacks: Sequence[np.ndarray], flag_type: Sequence[int]) -> np.ndarray:
    """Block after block, the leading rows of its stack beside those before."""
    y = np.zeros((0, stacks[0].shape[1]))
    for stack, block in zip(stacks, blocks_of(flag_type), strict=True):
        size = block.stop - block.start
        rest = stack - (stack @ y.T) @ y
        new = leading_rows(rest, size) if len(rest) >= size else rest
        y = orthonormal(np.concatenate([y, new]).T).T
    return y
