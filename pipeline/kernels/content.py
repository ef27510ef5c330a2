"""What a table of numbers holds, as a few numbers: sums of hashes that any cutting into blocks adds up to.

A row is hashed by h_i = sum_j b_ij R_j mod 2^64 over the bits b_ij of its entries, with odd pseudorandom R_j
(multilinear hashing, Carter and Wegman 1979), mixed with its position, and summed over stretches of rows. Sums of parts
are the sum of the whole, so that one pass gives them, whatever the chunks, blocks, order and side that is walked.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from pipeline.kernels.blocks import strips

__all__ = ["content_id", "mixed_rows", "piece_edges", "row_bits", "sparse_row_bits", "stretch_sums"]

_PIECE_BYTES = 64 << 20


def piece_edges(start: int, stop: int, d: int) -> np.ndarray:
    """Where rows [start, stop) of d features are cut into stretches: multiples of a height that depends on d only.

    >>> piece_edges(0, 10, 2**22).tolist(), piece_edges(3, 5, 8).tolist()
    ([0, 2, 4, 6, 8, 10], [3, 5])
    """
    height = 1 << max((_PIECE_BYTES // (8 * max(d, 1))).bit_length() - 1, 0)
    inner = np.arange(-(-(start + 1) // height) * height, stop, height)
    return np.unique(np.concatenate([[start], inner, [stop]])).astype(np.int64)


def row_bits(x: np.ndarray, first: int = 0, dtype: Any = None) -> np.ndarray:
    """(b,) uint64: what columns [first, first + c) of some rows, a float block (b, c), add to the rows' hashes.

    With a `dtype` it is the bits of the entries in that precision that count.
    """
    dtype = np.dtype(dtype or x.dtype)
    reals = 2 if dtype.kind == "c" else 1
    word: type = np.uint64
    c, first, wide = reals * x.shape[1], reals * first, dtype.itemsize == 8 * reals
    if wide:
        factors = _odd(np.arange(first, first + c))
    elif first % 2 == 0 and c % 2 == 0:  # two at a time: the same sum, twice as fast
        factors = _odd(np.arange(first // 2, (first + c) // 2))
    else:
        at, word = np.arange(first, first + c), np.uint32
        factors = _odd(at // 2) << (at % 2 * 32).astype(np.uint64)
    # Of integers, faster than the product of matrices.
    parts = (np.einsum("ij,j->i", np.ascontiguousarray(part, dtype).view(word), factors) for part in strips(x))
    return np.concatenate([np.zeros(0, np.uint64), *parts])


def sparse_row_bits(x: Any, first: int = 0) -> np.ndarray:
    """The same of a scipy.sparse block in double precision: zeros, stored or not, add nothing."""
    at = np.arange(first, first + x.shape[1])
    if x.dtype.kind != "c":
        return _bits_of(x, x.data) @ _odd(at)
    return _bits_of(x, x.data.real) @ _odd(2 * at) + _bits_of(x, x.data.imag) @ _odd(2 * at + 1)


def _bits_of(x: Any, data: np.ndarray) -> Any:
    bits = np.ascontiguousarray(data, np.float64).view(np.uint64)
    return type(x)((bits, x.indices, x.indptr), shape=x.shape)


def mixed_rows(bits: np.ndarray, start: int) -> np.ndarray:
    """(b,) uint64: hashes of whole rows [start, start + b) that tell where the rows stand, too."""
    at = np.arange(start, start + bits.size, dtype=np.uint64)
    return _mix(bits + _mix(at))


def stretch_sums(hashes: np.ndarray, start: int, edges: np.ndarray) -> np.ndarray:
    """(m,) uint64: what rows [start, start + b) add to the sums over the stretches between m + 1 edges."""
    at = np.clip(edges - start, 0, hashes.size)
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(hashes, dtype=np.uint64)])
    return sums[at[1:]] - sums[at[:-1]]


def content_id(edges: np.ndarray, sums: np.ndarray, d: int) -> str:
    """32 hex digits that name the rows between the edges by what they hold.

    >>> content_id(np.array([0, 5]), np.array([7], np.uint64), 3)
    '9c55ef2cfabc954b3d9c74338824b37d'
    """
    digest = hashlib.blake2b(digest_size=16)
    for part in (np.append(edges, d).astype("<i8"), sums.astype("<u8")):
        digest.update(part.tobytes())
    return digest.hexdigest()


def _odd(at: np.ndarray) -> np.ndarray:
    return _mix(at.astype(np.uint64)) | np.uint64(1)


def _mix(z: np.ndarray) -> np.ndarray:
    """The output function of SplitMix64 (Steele, Lea and Flood 2014)."""
    with np.errstate(over="ignore"):
        z = z + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
