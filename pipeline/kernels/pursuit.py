"""Principal component pursuit in factors: entries that do not fit are moved to within a threshold of what has low rank.

The convex problem min |L|_* + w sum h(X - L), h Huber's loss of a threshold (Candès, Li, Ma and Wright 2011; Zhou, Li,
Wright, Candès and Ma 2010 for noise), is solved where L is the singular value thresholding of Z = X - soft(X - L), by
threshold / w. For fixed right singular vectors and values every row finds its part of L by itself.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pipeline.kernels.divergence import errors_scale, sizes_of

__all__ = ["Pursued", "PursuitSums", "kept_shares", "least_threshold", "low_rank_rows", "pursued", "pursuit_sums"]

_TURNS, _DECAY, _STARTS = 60, 0.7, 80
_SETTLED = 5e-3  # share of the threshold that entries of L move by, root mean square, once it is settled
_BESIDE = 1e-2  # share of the threshold that rows settle to


class PursuitSums(NamedTuple):
    """Z'Z V (d, r), sum of the squares of Z, rows, entries that are off, errors beside L by powers of two."""

    images: np.ndarray
    squares: float
    rows: int
    outlying: int
    sizes: np.ndarray

    def __add__(self, other: tuple) -> PursuitSums:
        return PursuitSums(*(a + b for a, b in zip(self, other, strict=True)))


class Pursued(NamedTuple):
    """Right singular vectors (d, r) and singular values (r,) of Z, and the threshold that was come down to."""

    vectors: np.ndarray
    values: np.ndarray
    threshold: float


def kept_shares(values: np.ndarray, threshold: float, shape: tuple[int, int], most: int) -> np.ndarray:
    """(r,) what singular value thresholding leaves of each of the `most` largest values, as a share."""
    shares = 1 - threshold * np.sqrt(max(shape)) / np.maximum(values, np.finfo(float).tiny)
    return np.where(np.arange(len(values)) < most, np.maximum(shares, 0.0), 0.0)


def least_threshold(noise: float, shape: tuple[int, int]) -> float:
    """The threshold at which singular values of noise with that deviation are thresholded away."""
    return noise * (1 + float(np.sqrt(min(shape) / max(shape))))


def low_rank_rows(z: np.ndarray, vectors: np.ndarray, shares: np.ndarray, threshold: float) -> np.ndarray:
    """(m, r) scores of rows (m, d) whose part of low rank is scores @ vectors.T; the threshold falls by halves."""
    some = shares > 0
    lens, keep = vectors[:, some].astype(z.dtype), shares[some].astype(z.dtype)
    scores = np.zeros((len(z), vectors.shape[1]), z.dtype)
    found, active = np.zeros((len(z), len(keep)), z.dtype), np.arange(len(z))
    scale = np.maximum(0.5 * np.abs(z).max(axis=1, keepdims=True, initial=0.0), threshold).astype(z.dtype)
    close = _BESIDE * threshold * np.sqrt(z.shape[1])
    for _ in range(_TURNS):
        left = z[active] - found[active] @ lens.T
        np.clip(left, -scale, scale, out=left)
        after = keep * (found[active] + left @ lens)
        step = np.linalg.norm(after - found[active], axis=1)
        found[active] = after
        going = (step > close) | (scale[:, 0] > threshold)
        active, scale = active[going], np.maximum(0.5 * scale[going], z.dtype.type(threshold))
        if not active.size:
            break
    scores[:, some] = found
    return scores


def pursuit_sums(z: np.ndarray, vectors: np.ndarray, shares: np.ndarray, threshold: float) -> PursuitSums:
    """What the next right singular vectors are found from, of some rows."""
    vectors = vectors.astype(z.dtype)
    low = low_rank_rows(z, vectors, shares, threshold) @ vectors.T
    left = z - low
    off = int((np.abs(left) > 2 * threshold).sum())
    np.clip(left, -threshold, threshold, out=left)
    clean = low + left
    images = clean.T @ (clean @ vectors)
    return PursuitSums(
        images.astype(np.float64),
        float(np.einsum("ij,ij->", clean, clean, dtype=np.float64)),
        len(z),
        off,
        sizes_of(_beside(left, vectors[:, shares > 0])),
    )


def _beside(left: np.ndarray, lens: np.ndarray) -> np.ndarray:
    """What of errors no row of low rank can explain: shrinking, which is of the method, is not among it."""
    return left - (left @ lens) @ lens.T


def pursued(z: np.ndarray, shape: tuple[int, int], most: int, finest: float) -> Pursued:
    """The split of some rows of a matrix of that shape, in memory; values are of the whole matrix."""
    threshold, low = 0.5 * float(np.abs(z).max()), np.zeros_like(z)
    larger = np.sqrt(shape[0] / len(z))
    for _ in range(_STARTS):
        left = np.clip(z - low, -threshold, threshold)
        clean = low + left
        values, vectors = _right(clean)
        values = values * larger
        shares = kept_shares(values, threshold, shape, most)
        lens = vectors[:, shares > 0]
        before, low = low, (clean @ lens * shares[shares > 0].astype(z.dtype)) @ lens.T
        noise = errors_scale(sizes_of(_beside(left, lens)))
        down = max(_DECAY * threshold, least_threshold(noise, shape), finest)
        moved = float(np.linalg.norm(low - before)) / np.sqrt(z.size)
        if down >= 0.9 * threshold and moved <= _SETTLED * threshold:
            break
        threshold = min(threshold, down)
    return Pursued(vectors.astype(np.float64), values.astype(np.float64), threshold)


def _right(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Singular values, largest first, and right singular vectors as columns, by the smaller Gram matrix."""
    if len(z) > z.shape[1]:
        squares, vectors = np.linalg.eigh((z.T @ z).astype(np.float64))
        return np.sqrt(np.maximum(squares[::-1], 0.0)), vectors[:, ::-1].astype(z.dtype)
    squares, left = np.linalg.eigh((z @ z.T).astype(np.float64))
    values = np.sqrt(np.maximum(squares[::-1], 0.0))
    some = values > 1e-7 * max(float(values[0]), np.finfo(float).tiny)
    return values[some], (z.T @ (left[:, ::-1][:, some] / values[some])).astype(z.dtype)
