"""Updates against each other and against fitting anew: `python -m benchmarks.update`.

The matrix is sparse and of power-law degrees, as graphs and ratings are. No contender forms U diag(s) V^T: all see the
change through products. Times are those of the updates alone; the residual is ||A v - s u|| / s for the matrix A of all
that came, the median of the leading half of the components.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import scipy.sparse as sp
from threadpoolctl import threadpool_limits

from pipeline import PCA
from pipeline.evolving import EvolvingSVD
from pipeline.kernels.updates import Triplet, brand_rows, zha_simon_change, zha_simon_rows


def power_law(n: int, d: int, nnz: int, seed: int = 0) -> sp.csr_array:
    """A sparse matrix whose rows and columns have entries by a power law, in blocks of common taste."""
    rng = np.random.default_rng(seed)
    rows = (n * rng.power(0.5, nnz)).astype(int)
    taste = rows % 16
    columns = (taste + 16 * (d // 16 * rng.power(0.35, nnz)).astype(int)).clip(0, d - 1)
    mixed = rng.random(nnz) < 0.3
    columns[mixed] = (d * rng.power(0.5, mixed.sum())).astype(int)
    order = rng.permutation(n)
    return sp.csr_array((np.ones(nnz), (order[rows], columns)), (n, d))


class Classical:
    """Whole dense factors, turned by a classical rule."""

    def __init__(self, start: EvolvingSVD, rule: Callable[..., Triplet]) -> None:
        self.u, self.s, self.v = start.left, start.singular_values, start.components.T
        self.rule = rule

    def add_rows(self, rows: Any) -> None:
        self.u, self.s, self.v = self.rule(self.u, self.s, self.v, rows)

    def change(self, left: Any, right: Any) -> None:
        self.u, self.s, self.v = zha_simon_change(self.u, self.s, self.v, left, right)

    def triplet(self) -> Triplet:
        return self.u, self.s, self.v


class Extended(EvolvingSVD):
    """The extended decomposition, asked as the others are."""

    def triplet(self) -> Triplet:
        return self.left, self.singular_values, self.components.T


def rows_come(A: sp.csr_array, first: int, step: int) -> Iterator[tuple[str, tuple[Any, ...]]]:
    for start in range(first, A.shape[0], step):
        yield "add_rows", (A[start : start + step],)


def entries_come(A: sp.csr_array, steps: int, step: int) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Some rows after the others get new entries: left has a one in each of them, right their entries."""
    n, d = A.shape
    rng = np.random.default_rng(1)
    for _ in range(steps):
        at = rng.choice(n, step, replace=False)
        left = sp.csr_array((np.ones(step), (at, np.arange(step))), (n, step))
        yield "change", (left, sp.csr_array(sp.random_array((d, step), density=8 / d, rng=rng)))


def raced(contender: Any, acts: Iterator[tuple[str, tuple[Any, ...]]]) -> float:
    """Seconds of all updates."""
    seconds = 0.0
    for act, given in acts:
        started = time.perf_counter()
        getattr(contender, act)(*given)
        seconds += time.perf_counter() - started
    return seconds


def precision(A: sp.csr_array, found: Triplet) -> float:
    u, s, v = found
    half = max(s.size // 2, 1)
    return float(np.median(np.linalg.norm(A @ v[:, :half] - u[:, :half] * s[:half], axis=0) / s[:half]))


def sparse_race(n: int, d: int, k: int, updates: int, step: int) -> None:
    A = power_law(n, d, 12 * n)
    first = n - updates * step
    print(f"\nsparse {n} x {d}, {A.nnz} entries, k = {k}: {updates} updates of {step} rows each")
    print(f"{'rule':28s} {'rows: s':>9s} {'residual':>9s} {'entries: s':>11s} {'residual':>9s}")
    start = EvolvingSVD(A[:first], k)
    whole = EvolvingSVD(A, k)
    base: dict[str, float] = {}
    makers: dict[str, Callable[[EvolvingSVD, sp.csr_array], Any]] = {
        "Zha and Simon 1999": lambda s, _: Classical(s, zha_simon_rows),
        "Brand 2006, row by row": lambda s, _: Classical(s, brand_rows),
        "extended decomposition": lambda s, B: Extended(B, k),
    }
    for name, make in makers.items():
        contender = make(start, A[:first])
        by_rows = raced(contender, rows_come(A, first, step))
        residual = precision(A, contender.triplet())
        told = f"{name:28s} {by_rows:9.2f} {residual:9.1e}"
        if "Brand" not in name:
            contender = make(whole, A)
            by_entries = raced(contender, entries_come(A, updates, step))
            changed = A
            for _, (left, right) in entries_come(A, updates, step):
                changed = changed + left @ right.T
            told += f" {by_entries:11.2f} {precision(sp.csr_array(changed), contender.triplet()):9.1e}"
            if base:
                told += f"   {base['rows'] / by_rows:.0f} x and {base['entries'] / by_entries:.0f} x faster"
            else:
                base = {"rows": by_rows, "entries": by_entries}
        print(told)
    started = time.perf_counter()
    anew = Extended(A, k)
    print(f"{'once anew (ARPACK)':28s} {time.perf_counter() - started:9.2f} {precision(A, anew.triplet()):9.1e}")


def dense_race(n: int, d: int, k: int, updates: int) -> None:
    """A subspace that takes in batches, against fitting all there is so far again and again."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, 30)) @ (rng.standard_normal((30, d)) * np.geomspace(10, 1, 30)[:, None])
    x += 0.5 * rng.standard_normal((n, d)) + 3
    cuts = np.linspace(n // 2, n, updates + 1).astype(int)
    found = PCA(k + 20).fit(x[: cuts[0]]).subspace_
    seconds, again, worst, bound = 0.0, 0.0, 0.0, 0.0
    for i, (a, b) in enumerate(pairwise(cuts)):
        started = time.perf_counter()
        found = found.update(x[a:b])
        seconds += time.perf_counter() - started
        if i % 10 == 9:
            started = time.perf_counter()
            fitted = PCA(k).fit(x[:b]).subspace_
            again += 10 * (time.perf_counter() - started)
            worst = max(worst, float(np.sin(found.truncate(k).distance(fitted).max())))
            bound = float(np.sin(found.truncate(k).angle_bound))
    print(f"\ndense {n} x {d}, k = {k} (and 20 more kept): {updates} updates of {(n - n // 2) // updates} rows each")
    print(f"updates {seconds:.2f} s; refits {again:.2f} s (one in ten was made): {again / seconds:.0f} x")
    print(f"sine of the largest angle to the refit: worst {worst:.1e}; certified at the end: {bound:.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=["small", "full"], default="small")
    full = parser.parse_args().size == "full"
    with threadpool_limits(1):
        sparse_race(*((200_000, 100_000, 64, 100, 20) if full else (40_000, 30_000, 32, 50, 10)))
        dense_race(*((200_000, 500, 10, 100) if full else (40_000, 200, 10, 100)))


if __name__ == "__main__":
    main()
