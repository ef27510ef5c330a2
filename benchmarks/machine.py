"""The machine's own bound: how fast it decodes a store and multiplies its blocks, measured in the same run."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from pipeline import open_matrix
from pipeline.allocator import memory_is_reused

__all__ = ["bound", "handed_out"]

_CORES = 2
_COLUMNS = 10  # that an iterative solver multiplies with beside those wanted


def bound(store: Path, k: int, solver: str) -> dict[str, float]:
    """Seconds of one read of the store and of what a solver multiplies in one pass, on two cores.

    That is the square of the shorter side for the exact solvers, and X^T (X Q) for the others.
    """
    X = open_matrix(store)
    if solver == "dual_gram":
        X = X.T
    multiply = _square if solver.endswith("gram") else _thin
    tall = X.side == 0
    # Blocks that two threads have at a time, as often as there are blocks: the entries do not matter to BLAS.
    sparse, across = X.source.implicit, X.shape[1 - X.side]
    read_block = (lambda a, b, out: X.read_implicit(a, b).array) if sparse else X.read_range
    buffers = [None if sparse else np.empty(X.block_height * across, X.work_dtype) for _ in range(_CORES)]

    cuts = X.together(X.cuts) if sparse else X.cuts  # where little is stored, several blocks are read together

    def block(i: int, worker: int) -> Any:
        start, stop = int(cuts[i]), int(cuts[i + 1])
        out = buffers[worker]
        if out is not None:
            shape = (stop - start, across) if tall else (across, stop - start)
            out = out[: (stop - start) * across].reshape(shape)
        return read_block(start, stop, out)

    samples = [block(min(i, len(cuts) - 2), i) for i in range(_CORES)]
    work = [multiply(x if tall else x.T, k) for x in samples]

    def read(worker: int) -> None:
        for i in range(worker, len(cuts) - 1, _CORES):
            block(i, worker)

    def compute(worker: int) -> None:
        for _ in range(worker, len(cuts) - 1, _CORES):
            work[worker]()

    seconds = {}
    with threadpool_limits(1), memory_is_reused(), ThreadPoolExecutor(_CORES) as pool:
        for name, task in (("read", read), ("multiply", compute)):
            tries = []
            for _ in range(3):
                started = time.perf_counter()
                list(pool.map(task, range(_CORES)))
                tries.append(time.perf_counter() - started)
            seconds[name] = sorted(tries)[1]
    return seconds


def handed_out(nbytes: int) -> float:
    """Seconds until two threads have touched so much memory for the first time.

    A virtual machine may have to ask its host for each page: it is no part of the bound, and everybody pays it for what
    they hold.
    """
    fresh = np.empty(nbytes, np.uint8)
    with ThreadPoolExecutor(_CORES) as pool:
        started = time.perf_counter()
        list(pool.map(lambda part: part.fill(1), np.array_split(fresh, _CORES)))
        return time.perf_counter() - started


def _is_sparse(x: Any) -> bool:
    return not isinstance(x, np.ndarray)


def _square(x: Any, k: int) -> Callable[[], Any]:
    if _is_sparse(x):
        return lambda: x.T @ x
    out = np.empty((x.shape[1], x.shape[1]), x.dtype)
    return lambda: np.matmul(x.T, x, out=out)


def _thin(x: Any, k: int) -> Callable[[], Any]:
    q = np.random.default_rng(0).standard_normal((x.shape[1], k + _COLUMNS)).astype(x.dtype)
    if _is_sparse(x):
        return lambda: x.T @ (x @ q)
    out = np.empty((q.shape[1], q.shape[0]), x.dtype)
    return lambda: np.matmul((x @ q).T, x, out=out)
