"""Groups of rows that a valley parts from the bulk: pure functions on arrays.

Two fifths of the rows in a group, or two, as wide as the bulk have it in their ellipsoid, however it is found. But a
normal law has one hill along every direction, and they make another.
"""

from __future__ import annotations

import numpy as np

__all__ = ["apart"]

_BINS, _REACH = 8, 40  # of the shortest interval that holds half of the rows; as many on either side are looked at
_DEPTH, _SURE = 0.25, 4.5  # of the lower hill, that a valley is below; deviations by which it is no chance
_HILLS = 4  # at most; more are whole numbers, not groups
_PARTED = 6  # times that groups may be parted


def apart(
    z: np.ndarray, least: int, along: np.ndarray | None = None
) -> tuple[list[tuple[np.ndarray, np.ndarray, float]], np.ndarray]:
    """What keeps the bulk of rows (m, q), at least so many, and no group beside it: cuts, and which rows (m,) are left.

    Cuts are as of `pipeline.kernels.robust.Verdict`: none where the rows have one hill along every direction. Looked
    along are the columns, the axes of the fourth moments, which tell groups from what is only long (Peña and Prieto
    2001), and directions (q, p) that are known to tell.

    >>> rng = np.random.default_rng(0)
    >>> z = rng.normal(size=(1000, 2)) + np.repeat([[0, 0], [7, 0]], [700, 300], axis=0)
    >>> cuts, inside = apart(z, 600)
    >>> len(cuts), int(inside.sum()), len(apart(z[inside], 600)[0])
    (1, 699, 0)
    """
    cuts: list[tuple[np.ndarray, np.ndarray, float]] = []
    inside = np.ones(len(z), bool)
    for _ in range(_PARTED):
        lenses = _directions(z[inside]) if along is None else np.hstack([along, _directions(z[inside])])
        x = z @ lenses
        best = 0.0
        for j in range(x.shape[1]):
            depth, edge = _valley(x[inside, j])
            if depth > best:
                bulk = inside & ((x[:, j] < edge) == (np.median(x[inside, j]) < edge))
                middle = float(np.median(x[bulk, j]))
                left = inside & (np.square(x[:, j] - middle) < (edge - middle) ** 2)
                if left.sum() >= least:
                    best, kept, cut = depth, left, (lenses[:, [j]], np.array([middle]), (edge - middle) ** 2)
        if not best:
            break
        inside = kept
        cuts.append(cut)
    return cuts, inside


def _directions(z: np.ndarray) -> np.ndarray:
    """(q, 2 q) the columns, in deviations, and the axes of the fourth moments."""
    values, vectors = np.linalg.eigh(np.atleast_2d(np.cov(z.T)))
    whitener = vectors / np.sqrt(np.maximum(values, 1e-12 * max(float(values[-1]), np.finfo(float).tiny)))
    y = (z - z.mean(axis=0)) @ whitener
    fourth = (y * np.einsum("ij,ij->i", y, y)[:, None]).T @ y
    deviation = z.std(axis=0)
    return np.hstack([np.diag(1 / np.where(deviation > 0, deviation, 1.0)), whitener @ np.linalg.eigh(fourth)[1]])


def _valley(x: np.ndarray) -> tuple[float, float]:
    """How many deviations deep the deepest valley between two hills of numbers is, and where; 0 where there is none."""
    ordered, half = np.sort(x), len(x) // 2
    if np.count_nonzero(np.diff(ordered)) < half:  # a few values again and again have valleys between them all
        return 0.0, np.inf
    width = float((ordered[half:] - ordered[: len(x) - half]).min()) / _BINS
    middle = ordered[half]
    if not width > 0:
        return 0.0, np.inf
    bins = np.clip(np.rint((x - middle) / width), -_REACH, _REACH).astype(int) + _REACH
    counts = np.bincount(bins, minlength=2 * _REACH + 1)
    lower = np.minimum(np.maximum.accumulate(counts), np.maximum.accumulate(counts[::-1])[::-1])
    depth = np.where(counts <= _DEPTH * lower, (lower - counts) / np.sqrt(lower + counts + 1), 0.0)
    parts = np.count_nonzero(np.diff((depth >= _SURE).astype(int)) == 1)
    if not 1 <= parts < _HILLS:
        return 0.0, np.inf
    deepest = np.flatnonzero(depth == depth.max())
    return float(depth.max()), float(middle + (deepest[len(deepest) // 2] - _REACH) * width)
