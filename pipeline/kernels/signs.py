"""Random signs that belong to positions: the same whoever asks, in whatever pieces."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["MOST_SIGNS", "signs"]

MOST_SIGNS = 64


def signs(seed: int, start: int, stop: int, number: int, dtype: Any = np.float64) -> np.ndarray:
    """Signs (number, stop - start), +1 or -1, of the positions [start, stop).

    Each position has one 64-bit word of the counter-based generator Philox (Salmon, Moraes, Dror and Shaw 2011), and
    each of up to 64 signs one bit of it.

    >>> whole = signs(3, 0, 11, 2)
    >>> np.array_equal(np.hstack([signs(3, 0, 6, 2), signs(3, 6, 11, 2)]), whole)
    True
    """
    first = start // 4  # Philox makes four words of one count
    words = np.random.Philox(key=seed, counter=first).random_raw(stop - 4 * first)[start - 4 * first :]
    bits = (words >> np.arange(number, dtype=np.uint64)[:, None]) & np.uint64(1)
    return (2 * bits.astype(np.int8) - 1).astype(dtype)
