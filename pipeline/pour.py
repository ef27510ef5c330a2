"""`pour`: a fold over a stream, in this process, as its blocks come."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from pipeline.errors import NonfiniteError
from pipeline.fold import Fold, Tally, ready
from pipeline.matrix import Matrix
from pipeline.sources.stream import Stream, first_defect

__all__ = ["pour"]


def pour(matrix: Matrix, fold: Fold[Any]) -> tuple[Any, Tally]:
    """Fold all blocks of a stream.

    Raises InputError when it was read already, or an entry is NaN or Inf, which it names.
    """
    stream = matrix.source
    assert isinstance(stream, Stream)
    held, first = None, None
    scratch: dict[str, np.ndarray] = {}
    started, computing, blocks = time.perf_counter(), 0.0, 0
    for start, piece in stream.pieces(fold.dtype):
        t0 = time.perf_counter()
        try:
            at = (start, start + len(piece))
            entries = piece.copy() if matrix.code is None else np.where(piece == matrix.code, np.nan, piece)
            x = ready(fold, entries, at, first)
            held, first = fold.block(x, at, held, scratch), x if first is None else first
        except NonfiniteError:
            raise first_defect(piece, start) from None
        computing, blocks = computing + time.perf_counter() - t0, blocks + 1
    seconds = time.perf_counter() - started
    return held, Tally(blocks, stream.touched(0, np.zeros(0)), seconds - computing, computing, seconds)
