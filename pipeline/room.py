"""`Room`: the memory that there is for a fit, and what a worker holds of it at most."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import psutil
from dask.system import CPU_COUNT
from dask.utils import parse_bytes

from pipeline.crew import Crew, crew, locally, memory_here
from pipeline.errors import InputError
from pipeline.kernels.blocks import doubled, slab_rows
from pipeline.matrix import Matrix
from pipeline.solvers import Solver
from pipeline.solvers.solver import Cost
from pipeline.sources import ROWS
from pipeline.walk import waiting_nbytes

__all__ = ["Room"]

_BLAS_BYTES = 32 << 20  # that OpenBLAS works in, a thread of its own
_ROUNDED_UP = 1.25  # memory comes in arenas, in pieces that do not fit together
_SENT = 5  # times that a block from this process's memory is with a worker: as it came and as an array, also the next
_WORTH_KEEPING = 4 << 20  # bytes of the data from which on keeping blocks costs less than reading them again
# Parts of free memory, of what is spare in it, and of a worker's limit that are filled; the interpreter of a worker.
_OF_FREE, _OF_SPARE, _UNSPILLED, _INTERPRETER = 0.5, 0.8, 0.55, 300 << 20


@dataclass(frozen=True)
class Room:
    """Who works, bytes that each worker has, whether scores will follow a fit, and whether blocks are kept.

    Beside the threads that work, so many are `idle`.
    """

    crew: Crew
    limit: int | None
    scores: bool
    keeping: bool
    idle: int = 0

    @classmethod
    def given(cls, memory_limit: int | str | None, scores: bool, keeping: bool = True) -> Room:
        """What is there now; raises InputError for a limit that is none."""
        at_work = crew()
        return cls(at_work, _limit(memory_limit, at_work), scores, keeping)

    def with_fewer_threads(self) -> Room:
        """Half of the threads of this process are left idle."""
        fewer = self.crew.threads // 2
        return replace(self, crew=replace(self.crew, threads=fewer), idle=self.idle + self.crew.threads - fewer)

    def threads(self, X: Matrix) -> int:
        """How many threads of a worker have a block at a time."""
        return min(self.crew.threads_each, -(-X.n_blocks // self.crew.workers))

    def peak(self, X: Matrix, solver: Solver[Any], cost: Cost) -> int:
        """Bytes that a worker holds at most: its threads at work, or the driver in it between two passes."""
        threads, settings = self.threads(X), solver.settings
        dtype = (cost.dtype or X.block_dtype) if settings.tol is None else doubled(X.dtype)  # if rounding is in the way
        across = max(1, X.shape[1 - X.side])
        slab = 2 * 8 * slab_rows(across) * across  # a part of a block, in float64
        each = cost.summary_bytes + cost.scratch_bytes + slab + self._reading(X, solver, dtype)
        waiting = waiting_nbytes(X, cost.summary_bytes, self.crew)
        at_it = threads * each + self._multiplying(threads) + waiting
        if self.crew.client is not None:
            return int(_ROUNDED_UP * (at_it + cost.summary_bytes))
        return int(_ROUNDED_UP * max(at_it + cost.state_bytes, cost.client_bytes + cost.summary_bytes))

    def _reading(self, X: Matrix, solver: Solver[Any], dtype: np.dtype[Any]) -> int:
        """Bytes of a block that is being read, and of what it is read from."""
        walks = [X] if solver.settings.missing == "error" or X.side == ROWS else [X, X.T]  # the means are those of rows
        nbytes = max(w.block_nbytes(dtype) + w.source.beside(w.side, w.cuts, dtype) for w in walks)
        if dtype.kind == "c":  # products take the conjugate of a block
            nbytes += X.block_nbytes(dtype)
        if self.crew.client is not None and X.source.held:
            nbytes += _SENT * X.block_nbytes(X.dtype)
        return nbytes

    def _multiplying(self, threads: int) -> int:
        """Bytes that BLAS works in: here a thread has more than one core for it where others have no block."""
        return _BLAS_BYTES * (threads if self.crew.client is not None else min(CPU_COUNT, 2 * threads))

    def spare(self, X: Matrix, peak: float) -> int:
        """Bytes that all workers together can keep decoded beside their work."""
        small = X.bytes_a_pass < _WORTH_KEEPING
        # What is in memory needs no keeping, but for sparse entries, which are multiplied in double precision.
        there = X.source.held and not (X.source.implicit and locally())
        if there or small or (self.crew.client is None and not locally()):
            return 0
        if self.crew.client is not None:  # Dask writes to disk what lies above: nothing of ours is to get there
            return self.crew.workers * int(max((self.limit or 0) * _UNSPILLED - _INTERPRETER - peak, 0))
        free = int(psutil.virtual_memory().available * _OF_FREE)
        return int(max((min(free, self.limit or free) - peak) * _OF_SPARE, 0))


def _limit(memory_limit: int | str | None, at_work: Crew) -> int | None:
    if memory_limit is None:
        return memory_here() if at_work.client is None else at_work.memory
    try:
        limit = parse_bytes(memory_limit)
    except (ValueError, TypeError) as error:
        raise InputError(f"memory_limit={memory_limit!r}: give bytes, or a size such as '2GB'") from error
    if limit <= 0:
        raise InputError(f"memory_limit={memory_limit!r} must be positive")
    return int(limit)
