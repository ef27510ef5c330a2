"""Principal component pursuit in factors: entries that do not fit are moved to within a threshold of what has low rank.

The convex problem min |L|_* + w sum h(X - L), h Huber's loss of a threshold (Candès, Li, Ma and Wright 2011; Zhou, Li,
Wright, Candès and Ma 2010 for noise), is solved where L is the singular value thresholding of Z = X - soft(X - L), by
threshold / w. For fixed right singular vectors and values every row finds its part of L by itself.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pipeline.kernels.divergence import errors_scale, sizes_of

__all__ = [
    "Level",
    "Pursued",
    "PursuitSums",
    "kept_shares",
    "low_rank_rows",
    "lowered",
    "pursued",
    "pursuit_sums",
    "settled",
]

_TURNS, _STARTS = 200, 500
_DECAY, _FAST, _COARSE = 0.7, 0.3, 0.05  # of thresholds down to a coarse one, and from there, in units of the data
# Share of the threshold that entries of L move by, root mean square, once it is settled: first, in a pass, in memory.
_LOOSE, _SETTLED, _START = 0.05, 1e-2, 5e-4
_FAINT = 1e-7  # of the largest singular value: below it, values that were found from squares are rounding
_CALM = 0.05  # share of the scale, an entry, that a row moves by when the scale is halved
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


class Level(NamedTuple):
    """A threshold, and how many singular values came through where it became a fine one."""

    threshold: float
    rank: int | None = None


class Pursued(NamedTuple):
    """Right singular vectors (d, r) and singular values (r,) of Z, and the level that was come down to."""

    vectors: np.ndarray
    values: np.ndarray
    level: Level


def kept_shares(values: np.ndarray, threshold: float, shape: tuple[int, int], most: int) -> np.ndarray:
    """(r,) what singular value thresholding leaves of each of the `most` largest values, as a share."""
    through = _through(values, threshold, shape) & (np.arange(len(values)) < most)
    return np.where(through, 1 - threshold * np.sqrt(max(shape)) / np.where(through, values, 1.0), 0.0)


def lowered(level: Level, values: np.ndarray, noise: float, shape: tuple[int, int], finest: float) -> Level:
    """Where the threshold goes once L has settled at a level; the same level where it stays.

    Not below what thresholds the singular values of noise away. Far below the spread of the data it goes on only as
    long as no more singular values come through: where the rest of the data is sparse none do, and the split is exact.
    """
    least = max(finest, noise * (1 + float(np.sqrt(min(shape) / max(shape)))))
    if level.threshold > _COARSE:
        return Level(min(level.threshold, max(_DECAY * level.threshold, _COARSE, least)))
    counting = int(np.count_nonzero(_through(values, level.threshold, shape)))
    rank = counting if level.rank is None else level.rank
    if counting > rank:
        return Level(level.threshold, rank)
    return Level(min(level.threshold, max(_FAST * level.threshold, least)), rank)


def _through(values: np.ndarray, threshold: float, shape: tuple[int, int]) -> np.ndarray:
    """(r,) bool: which singular values are more than what is taken off, and more than rounding."""
    return values > max(threshold * float(np.sqrt(max(shape))), _FAINT * float(values.max(initial=0.0)))


def settled(moved: float, threshold: float, close: float = _SETTLED) -> bool:
    """Whether L, whose entries moved by that much, root mean square, stays for all that a threshold tells."""
    return moved <= (_LOOSE if threshold > _COARSE else close) * threshold


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
        # Clipped entries move by no more than the scale: who lowers it too soon stays where he is.
        calm = (step <= _CALM * scale[:, 0] * np.sqrt(z.shape[1]))[:, None]
        scale = np.where(calm, np.maximum(0.5 * scale, z.dtype.type(threshold)), scale)
        active, scale = active[going], scale[going]
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
    level, low = Level(0.5 * float(np.abs(z).max())), np.zeros_like(z)
    larger, ahead, turn = np.sqrt(shape[0] / len(z)), low, 0
    for _ in range(_STARTS):
        left = np.clip(z - ahead, -level.threshold, level.threshold)
        clean = ahead + left
        values, vectors = _right(clean)
        values = values * larger
        shares = kept_shares(values, level.threshold, shape, most)
        lens = vectors[:, shares > 0]
        before, low = low, (clean @ lens * shares[shares > 0].astype(z.dtype)) @ lens.T
        # Nesterov's momentum, anew at each level.
        ahead, turn = low + (turn / (turn + 3)) * (low - before), turn + 1
        if settled(float(np.linalg.norm(low - before)) / np.sqrt(z.size), level.threshold, _START):
            noise = errors_scale(sizes_of(_beside(left, lens)))
            level, now, turn = lowered(level, values, noise, shape, finest), level, 0
            if level.threshold > 0.9 * now.threshold:
                break
    return Pursued(vectors.astype(np.float64), values.astype(np.float64), level)


def _right(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Singular values, largest first, and right singular vectors as columns, by the smaller Gram matrix."""
    if len(z) > z.shape[1]:
        squares, vectors = np.linalg.eigh((z.T @ z).astype(np.float64))
        return np.sqrt(np.maximum(squares[::-1], 0.0)), vectors[:, ::-1].astype(z.dtype)
    squares, left = np.linalg.eigh((z @ z.T).astype(np.float64))
    values = np.sqrt(np.maximum(squares[::-1], 0.0))
    some = values > 1e-7 * max(float(values[0]), np.finfo(float).tiny)
    return values[some], (z.T @ (left[:, ::-1][:, some] / values[some])).astype(z.dtype)
