"""Speed-up on 1, 2 and 4 workers, measured; and a pass on 1,000 workers, simulated from what was measured.

Run as `python -m benchmarks.scale`. The simulation replays one pass: tasks go to workers at the scheduler's measured
rate, a worker fetches the broadcast context from others that have it (a doubling tree), reads its blocks at the smaller
of its own decoding speed and its share of the storage, multiplies at the measured speed, and the summaries are combined
over the network, as many at a time as in a real walk.
"""

from __future__ import annotations

import heapq
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path

import click
import numpy as np

from benchmarks.machine import bound
from benchmarks.shapes import Shape
from pipeline import PCA, open_matrix
from pipeline.walk import fan_in, runs_each

_PASSES = 4  # of krylov


@dataclass(frozen=True)
class Site:
    """A cluster: workers of some threads, and what a second brings; speeds in bytes, tasks and products a second."""

    workers: int
    threads: int = 4
    task_rate: float = 1000.0
    decode: float = 1e9
    """Of one thread."""
    multiply: float = 5e10
    """float32 operations of one thread."""
    nic: float = 1.25e9
    """10 Gbit/s."""
    storage: float = 100e9
    """Of the object store, for all workers together."""
    latency: float = 0.01


@dataclass(frozen=True)
class Work:
    """One pass: rows and columns of float32, columns of the thin matrix."""

    n: float
    d: float
    l: int

    @property
    def nbytes(self) -> float:
        return 4 * self.n * self.d

    @property
    def summary(self) -> float:
        """Bytes of a summary, d x l in float64."""
        return 8 * self.d * self.l


@dataclass(frozen=True)
class Parts:
    """Seconds of a pass, and of what it would take alone."""

    wall: float
    submit: float
    broadcast: float
    read: float
    multiply: float
    combine: float


def simulate(work: Work, site: Site, seed: int = 0) -> Parts:
    """Replay one pass; task durations vary by a fifth, as measured ones do."""
    rng = np.random.default_rng(seed)
    slots, fan = site.workers * site.threads, fan_in(int(work.summary))
    tasks = slots * runs_each(int(work.summary))
    a_task = work.nbytes / tasks
    speed = min(site.decode, site.storage / slots, site.nic / site.threads)
    read, multiply = a_task / speed, 4 * a_task / 4 * work.l / site.multiply
    broadcast = math.ceil(math.log2(site.workers + 1)) * (work.summary / site.nic + site.latency)
    free = [broadcast] * slots
    heapq.heapify(free)
    ends = []
    for i in range(tasks):
        start = max(heapq.heappop(free), i / site.task_rate)
        end = start + site.latency + (read + multiply) * rng.uniform(0.9, 1.1)
        heapq.heappush(free, end)
        ends.append(end)
    level, done = sorted(ends), tasks
    combine = 0.0
    while len(level) > 1:
        cost = site.latency + (fan - 1) * (work.summary / site.nic + 2 * work.summary / site.decode)
        groups = [level[i : i + fan] for i in range(0, len(level), fan)]
        level = [max(max(g), (done + i) / site.task_rate) + cost for i, g in enumerate(groups)]
        done += len(groups)
        combine += cost
    return Parts(level[0], done / site.task_rate, broadcast, read * tasks / slots, multiply * tasks / slots, combine)


def scheduler_rate(tasks: int = 4_000) -> float:
    """Tasks a second that a real scheduler with two worker processes gets through when they do nothing."""
    from distributed import Client

    with Client(n_workers=2, threads_per_worker=1, dashboard_address=None) as client:
        client.gather(client.map(_nothing, range(64)))
        started = time.perf_counter()
        client.gather(client.map(_nothing, range(64, 64 + tasks)))
        return tasks / (time.perf_counter() - started)


def _nothing(x: int) -> int:
    return x


def speed_up(store: Path, workers: tuple[int, ...], repeats: int = 3) -> dict[int, float]:
    """Median seconds of a fit on so many worker processes of one thread."""
    from distributed import Client

    seconds = {}
    for count in workers:
        with Client(n_workers=count, threads_per_worker=1, dashboard_address=None):
            X, tries = open_matrix(store), []
            PCA(10).fit(X)  # imports and page cache
            for _ in range(repeats):
                started = time.perf_counter()
                PCA(10).fit(X)
                tries.append(time.perf_counter() - started)
            seconds[count] = sorted(tries)[len(tries) // 2]
    return seconds


@click.command(help=__doc__)
@click.option("--folder", type=click.Path(path_type=Path), default=Path("out/bench"), show_default=True)
@click.option("--rows", default=1_000_000, show_default=True)
def main(folder: Path, rows: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    shape = Shape("scale", rows, 200, (20_000, 200))
    store = shape.store(folder)
    curve = speed_up(store, (1, 2, 4))
    print("| workers | seconds of a fit | speed-up |\n|---|---|---|")
    for count, seconds in curve.items():
        print(f"| {count} | {seconds:.2f} | {curve[1] / seconds:.2f} |")
    best = bound(store, 50, "krylov")
    decode, multiply = 4 * shape.n * shape.d / best["read"] / 2, 4 * shape.n * shape.d * 60 / best["multiply"] / 2
    rate = scheduler_rate()
    print(
        f"\nOne thread decodes {decode / 1e9:.2f} GB/s and multiplies {multiply / 1e9:.0f} GFLOP/s; "
        f"the scheduler gets through {rate:.0f} tasks a second.\n"
    )
    site = Site(1000, task_rate=rate, decode=decode, multiply=multiply)
    parts = ("one pass s", "submit", "broadcast", "read", "multiply", "combine")
    heads = ("data", "workers", "fit of four passes s", *parts)
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for name, work in {
        "10 TB, 10,000 features": Work(2.5e8, 1e4, 60),
        "10 TB, 1 M features": Work(2.5e6, 1e6, 60),
        "1 PB, 10,000 features": Work(2.5e10, 1e4, 60),
        "1 PB, 1 M features": Work(2.5e8, 1e6, 60),
    }.items():
        for workers in (100, 1000, 4000):
            p = simulate(work, replace(site, workers=workers))
            cells = (_PASSES * p.wall, p.wall, p.submit, p.broadcast, p.read, p.multiply, p.combine)
            print(f"| {name} | {workers} | " + " | ".join(f"{c:,.0f}" for c in cells) + " |")


if __name__ == "__main__":
    main()
