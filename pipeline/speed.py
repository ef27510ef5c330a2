"""What this machine does in a second, measured: what the choice between solvers rests on.

Multiplying is timed once a process, on a small product, and so is new memory. Reading is never timed for its own sake:
every walk leaves behind how fast its source was read, and until there was one a cautious rate is assumed.
"""

from __future__ import annotations

import mmap
import time
from functools import cache

import numpy as np
from threadpoolctl import threadpool_limits

from pipeline.fold import Tally
from pipeline.matrix import Matrix

__all__ = ["handing_out", "in_words", "multiplying", "observe", "reading"]

_ASSUMED = {True: 4e9, False: 0.6e9}  # bytes a second and thread: in memory, and from a compressed store
_SIDE, _TRIES = 320, 4
_PIECE, _SLOW = 16 << 20, 0.5e9  # bytes; and a second, of memory that is slow
_PATIENCE = 0.15  # seconds
_seen: dict[tuple[str, str], float] = {}


@cache
def multiplying(itemsize: int) -> float:
    """Floating-point operations a second and thread in products of floats of 4 or 8 bytes; takes some milliseconds."""
    a = np.ones((_SIDE, _SIDE), np.float32 if itemsize == 4 else np.float64)
    out, best = np.empty_like(a), np.inf
    with threadpool_limits(1, "blas"):
        for _ in range(_TRIES):
            started = time.perf_counter()
            np.matmul(a, a, out=out)
            best = min(best, time.perf_counter() - started)
    return 2.0 * _SIDE**3 / best


@cache
def handing_out(nbytes: int) -> float:
    """Bytes a second and thread of memory that the system hands out anew, as that is when so many are asked for.

    A virtual machine that gives freed memory back to its host may take longer for it than decoding into it does; but
    the first of it may still be there. Takes 0.2 seconds at most.
    """
    pieces: list[np.ndarray] = []
    slowest, started = np.inf, time.perf_counter()
    before = started
    while len(pieces) * _PIECE < nbytes and slowest > _SLOW and before - started < _PATIENCE:
        pieces.append(np.empty(_PIECE, np.uint8))
        pieces[-1][:: mmap.PAGESIZE] = 1
        now = time.perf_counter()
        slowest, before = min(slowest, _PIECE / (now - before)), now
    return slowest


def reading(X: Matrix) -> tuple[float, bool]:
    """Decoded bytes a second and thread from where X is stored, and whether that was measured."""
    seen = _seen.get((X.name, X.source.layout))
    return (_ASSUMED[bool(X.source.held)], False) if seen is None else (seen, True)


def observe(X: Matrix, tally: Tally) -> None:
    """Keep how fast a walk read."""
    if tally.nbytes > 1 << 20 and tally.read_seconds > 0:
        _seen[X.name, X.source.layout] = tally.nbytes / tally.read_seconds


def in_words(X: Matrix) -> str:
    """Both rates.

    >>> from pipeline import open_matrix
    >>> in_words(open_matrix(np.zeros((3, 2)))).split(" and ")[0]
    'reading at 4 GB/s (assumed)'
    """
    rate, measured = reading(X)
    flops = multiplying(X.work_dtype.itemsize)
    return (
        f"reading at {rate / 1e9:.2g} GB/s ({'measured' if measured else 'assumed'}) and multiplying at "
        f"{flops / 1e9:.3g} GFLOP/s (measured) a thread"
    )
