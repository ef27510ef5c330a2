"""Updates against each other and against fitting anew: `python -m benchmarks.update`.

The matrix is sparse and of power-law degrees, as graphs and ratings are. No contender forms U diag(s) V^T: all see the
change through products, and begin with the same triplets. Times are those of the updates alone, of one core, the
contenders in turns; the residual is that of the triplets at the end in the matrix of all that came.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from copy import deepcopy
from itertools import pairwise
from typing import Any

import numpy as np
import scipy.sparse as sp
from threadpoolctl import threadpool_limits

from benchmarks.classical import Brand, Triplet, ZhaSimon
from pipeline import PCA
from pipeline.evolving import EvolvingSVD


def power_law(n: int, d: int, nnz: int, seed: int = 0) -> sp.csr_array:
    """A sparse matrix whose rows and columns have entries by a power law, in blocks of common taste."""
    rng = np.random.default_rng(seed)
    rows = (n * rng.power(0.5, nnz)).astype(int)
    taste = rows % 16
    columns = (taste + 16 * (d // 16 * rng.power(0.35, nnz)).astype(int)).clip(0, d - 1)
    mixed = rng.random(nnz) < 0.3
    columns[mixed] = (d * rng.power(0.5, mixed.sum())).astype(int)
    return sp.csr_array((np.ones(nnz), (rng.permutation(n)[rows], rng.permutation(d)[columns])), (n, d))


class Extended(EvolvingSVD):
    """The extended decomposition, asked as the others are."""

    def triplet(self) -> Triplet:
        return self.left, self.singular_values, self.components.T


Act = tuple[str, tuple[Any, ...]]


def rows_come(A: sp.csr_array, n: int, d: int, step: int) -> Iterator[Act]:
    """The rows of A after the first n, in batches."""
    for start in range(n, A.shape[0], step):
        yield "add_rows", (A[start : start + step, :d],)


def columns_come(A: sp.csr_array, n: int, d: int, step: int) -> Iterator[Act]:
    at = sp.csc_array(A)
    for start in range(d, A.shape[1], step):
        yield "add_columns", (at[:n, start : start + step],)


def weights_change(A: sp.csr_array, n: int, d: int, step: int) -> Iterator[Act]:
    """Rows lose a tenth of their weight, and get the entries of others for it."""
    rng = np.random.default_rng(1)
    for _ in range(n, A.shape[0], step):
        at = rng.choice(n, step, replace=False)
        left = sp.csc_array((np.ones(step), (at, np.arange(step))), (n, step))
        yield "change", (left, sp.csc_array((0.1 * (A[rng.permutation(at), :d] - A[at, :d])).T))


def after(start: sp.csr_array, acts: list[Act]) -> sp.csr_array:
    """The matrix that all acts lead to."""
    name = acts[0][0]
    if name == "add_rows":
        return sp.csr_array(sp.vstack([start, *(given[0] for _, given in acts)]))
    if name == "add_columns":
        return sp.csr_array(sp.hstack([start, *(given[0] for _, given in acts)]))
    return sp.csr_array(start + sum(left @ right.T for _, (left, right) in acts))


def raced(contenders: dict[str, Any], acts: list[Act]) -> dict[str, float]:
    """Seconds of a core that all updates of each contender take; they take turns."""
    seconds = dict.fromkeys(contenders, 0.0)
    for act, given in acts:
        for name, contender in contenders.items():
            started = time.process_time()
            getattr(contender, act)(*given)
            seconds[name] += time.process_time() - started
    return seconds


def precision(A: sp.csr_array, found: Triplet) -> float:
    """Median over the leading half of the components of the larger of |A v - s u| / s and |A^T u - s v| / s."""
    u, s, v = found
    half = max(s.size // 2, 1)
    u, s, v = u[:, :half], s[:half], v[:, :half]
    sides = (np.linalg.norm(A @ v - u * s, axis=0), np.linalg.norm(A.T @ u - v * s, axis=0))
    return float(np.median(np.maximum(*sides) / s))


CHANGES = {"rows": rows_come, "columns": columns_come, "weights": weights_change}


CHANGES = {"rows": rows_come, "columns": columns_come, "weights": weights_change}


def sparse_race(n: int, d: int, nnz: int, k: int, updates: int, step: int) -> None:
    """A line for each kind of change: what an update costs, and how far the result is from an exact one at the end."""
    A = power_law(n, d, nnz)
    n, d = n - updates * step, d - updates * step
    start = A[:n, :d]
    begun = Extended(start, k)
    for change, come in CHANGES.items():
        acts = list(come(A, n, d, step))
        given = begun.triplet()
        contenders = {"Zha-Simon": ZhaSimon(*given), "Brand": Brand(*given), "extended": deepcopy(begun)}
        seconds = raced(contenders, acts)
        whole = after(start, acts)
        found = [precision(whole, contender.triplet()) for contender in contenders.values()]
        zha_simon, brand, ours = (1e3 * seconds[name] / updates for name in contenders)
        cells = [f"{A.shape[0]:,} x {A.shape[1]:,}", f"{A.nnz:,}", k, f"{updates} of {step}", change]
        cells += [
            f"{zha_simon:.1f}",
            f"{brand:.1f}",
            f"{ours:.2f}",
            f"{zha_simon / ours:.1f} x",
            f"{brand / ours:.1f} x",
        ]
        cells += [" / ".join(f"{residual:.1e}" for residual in found)]
        print("|", " | ".join(map(str, cells)), "|", flush=True)


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


SMALL = [(40_000, 30_000, 480_000, 32, 50, 10)]
# Sizes of graphs and ratings of the literature: trust and links (Slashdot, Epinions), a denser graph (Flickr),
# films by viewers (MovieLens 1M and 25M).
FULL = [
    *((82_168, 82_168, 870_161, k, 20, 10) for k in (16, 32, 64, 128)),
    *((82_168, 82_168, 870_161, 64, updates, step) for updates, step in ((100, 1), (5, 100), (1, 1000))),
    (75_879, 75_879, 1_017_674, 64, 20, 10),
    (80_513, 80_513, 11_799_764, 64, 20, 10),
    (162_541, 59_047, 25_000_095, 32, 20, 10),
    (6_040, 3_706, 1_000_209, 32, 20, 10),
    (1_000, 800, 20_000, 32, 20, 10),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=["small", "full"], default="small")
    full = parser.parse_args().size == "full"
    with threadpool_limits(1):
        print("milliseconds an update; residuals of Zha-Simon / Brand / extended\n")
        print("| matrix | entries | k | updates | change | Zha-Simon | Brand | extended | faster than | | residuals |")
        print("|---|---|---|---|---|---|---|---|---|---|---|")
        for size in FULL if full else SMALL:
            sparse_race(*size)
        dense_race(*((200_000, 500, 10, 100) if full else (40_000, 200, 10, 100)))


if __name__ == "__main__":
    main()
