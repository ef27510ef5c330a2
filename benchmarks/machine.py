"""The machine's own bound: how fast it decodes a store and multiplies its blocks, measured in the same run."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from pipeline import open_matrix

__all__ = ["bound"]


def bound(store: Path, k: int) -> dict[str, float]:
    """Seconds of one read of the store and of one X^T (X Q) with as many columns as a solver takes, on two cores."""
    X = open_matrix(store)
    cores = 2
    buffers = [np.empty((X.block_height, X.shape[1]), X.work_dtype) for _ in range(cores)]
    thin = np.random.default_rng(0).standard_normal((X.shape[1], k + max(16, k // 2) + 8)).astype(X.work_dtype)

    def read(worker: int) -> None:
        for i in range(worker, X.n_blocks, cores):
            start, stop = X.bounds(i)
            X.read(i, buffers[worker][: stop - start])

    def multiply(worker: int) -> None:
        out = np.empty((thin.shape[1], X.shape[1]), X.work_dtype)
        for _ in range(worker, X.n_blocks, cores):
            np.matmul((buffers[worker] @ thin).T, buffers[worker], out=out)

    seconds = {}
    with threadpool_limits(1), ThreadPoolExecutor(cores) as pool:
        for name, work in (("read", read), ("multiply", multiply)):
            tries = []
            for _ in range(3):
                started = time.perf_counter()
                list(pool.map(work, range(cores)))
                tries.append(time.perf_counter() - started)
            seconds[name] = sorted(tries)[1]
    return seconds
