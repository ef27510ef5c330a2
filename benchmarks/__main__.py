"""Run the benchmark: every contender on every shape in a process of its own, interleaved, with medians and ratios."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
import psutil

from benchmarks.contenders import CONTENDERS, HEADLINE, suits
from benchmarks.machine import bound, handed_out
from benchmarks.shapes import SHAPES, Genotypes, Shape

_LIMITS = {"smoke": 30.0, "small": 30.0, "full": 300.0}  # seconds that a contender has
_REST = 2.0  # seconds for each GB that a contender gives back, lest the next finds it warm: a host takes it back


@dataclass(frozen=True)
class Run:
    """One process: seconds with and without imports, CPU seconds, peak GB of its tree, GB read, and how good it is.

    `excess` is the share of the variance that the answer misses beside what the best of its rank misses.
    """

    wall: float
    fit: float
    cpu: float
    peak: float
    read: float
    sine: float
    error: float
    excess: float
    failure: str = ""
    told: Mapping[str, Any] = field(default_factory=dict)


def measure(name: str, shape: Shape, folder: Path, k: int, seconds: float) -> Run:
    """Run a contender once; what fails or takes longer than so many seconds is told, not raised."""
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "answer.npz"
        task = [name, str(shape.store(folder)), str(k), shape.kind, shape.limit or "", str(out)]
        started = time.perf_counter()
        process = psutil.Popen(
            [sys.executable, "-W", "ignore", "-m", "benchmarks.contenders", *task],
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        watch = Watch(process)
        try:
            stdout, stderr = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            for child in (*process.children(recursive=True), process):
                child.kill()
            process.communicate()
            return Run(seconds, seconds, 0, watch.stop(), watch.read, 1, 1, 1, f"stopped after {seconds:.0f} s")
        wall = time.perf_counter() - started
        peak = watch.stop()
        if process.returncode:
            last = next((t for t in reversed(stderr.decode().splitlines()) if t.strip()), f"exit {process.returncode}")
            return Run(wall, wall, watch.cpu, peak, watch.read, 1, 1, 1, last.strip()[:110])
        with np.load(out) as answer:
            got, components = answer["values"][:k], answer["components"][:k].astype(np.float64)
            fit = float(answer["seconds"])
    told = json.loads(stdout.splitlines()[-1]) if name == "ours" else {}
    values, vectors, trace = shape.exact(folder, k)
    q = np.linalg.qr(components.T)[0].T
    overlap = q @ vectors.T
    sine = float(np.linalg.norm(q - overlap @ vectors, 2))
    missed = _missed(overlap, values, trace)
    return Run(wall, fit, watch.cpu, peak, watch.read, sine, _worst(got, values), missed, told=told)


def _worst(got: np.ndarray, values: np.ndarray) -> float:
    return float(np.max(np.abs(got / values[: got.size] - 1)))


def _missed(overlap: np.ndarray, values: np.ndarray, trace: float) -> float:
    """At least what the leading k directions lose: what leaks into the rest is taken to have its largest variance."""
    kept = (overlap**2).sum(axis=0)
    return float(np.sum((1 - kept).clip(0) * (values[: kept.size] - values[-1]))) / trace


class Watch(threading.Thread):
    """Looks at a process and its children until it is stopped: peak memory (GB), CPU seconds, GB read."""

    def __init__(self, process: psutil.Popen) -> None:
        super().__init__(daemon=True)
        self.process, self.peak, self.cpu, self.read, self.over = process, 0.0, 0.0, 0.0, threading.Event()
        self.start()

    def run(self) -> None:
        while not self.over.wait(0.02):
            try:
                tree = [self.process, *self.process.children(recursive=True)]
                self.peak = max(self.peak, sum(p.memory_info().rss for p in tree) / 1e9)
                times = [p.cpu_times() for p in tree]
                self.cpu = max(self.cpu, sum(t.user + t.system for t in times))
                self.read = max(self.read, sum(p.io_counters().read_chars for p in tree) / 1e9)
            except psutil.Error:
                return

    def stop(self) -> float:
        """End, and give the peak."""
        self.over.set()
        self.join()
        return self.peak


def table(shape: Shape, k: int, runs: dict[str, list[Run]], folder: Path) -> str:
    """One shape as Markdown: medians, and ratios to ours of the same run."""
    told = next((t.told for t in runs["ours"] if t.told), {})
    promised = int(told.get("promised", 0))
    touch = handed_out(promised)  # before anything here has used memory that would be handed out again
    best = bound(shape.store(folder), k, str(told.get("solver", "")))
    reads = told["bytes"] / told["stored"] if told else 1.0
    narrow = min(told.get("width", k + 10) / (k + 10), 1.0)  # columns beside those that the bound multiplies with
    walked = told.get("walked", 1)
    least = best["read"] * reads + best["multiply"] * narrow * walked
    values, _, _ = shape.exact(folder, k)
    gap = 1 - values[k] / values[k - 1]
    lines = [
        f"**{shape.name}**: {shape.n:,} x {shape.d:,} {shape.kind}, chunks {shape.chunks[0]:,} x {shape.chunks[1]:,}"
        f"{f', two workers of {shape.limit}' if shape.limit else ''}; k = {k}, gap {gap:.0%}; "
        f"one read {best['read']:.2f} s, one multiplication {best['multiply']:.2f} s; ours took {told.get('passes')} "
        f"passes of {told.get('solver')}{f', {walked:.1f} with those over a sample' if walked % 1 else ''}, "
        f"{reads:.1f} reads: bound {least:.1f} s, with a promise of {promised / 1e9:.2f} GB a worker, "
        f"which the system takes {touch:.1f} s to hand out",
        "",
        "| | wall s | over ours | after imports | over ours | over the bound | CPU s | peak GB | GB read | sin "
        "| eigenvalue error | excess |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, tries in runs.items():
        good = [t for t in tries if not t.failure]
        if not good:
            lines.append(f"| {name} | {tries[0].failure} | | | | | | {tries[0].peak:.2f} | | | | |")
            continue
        pairs = list(zip(tries, runs["ours"], strict=True))
        ratio = statistics.median(t.wall / o.wall for t, o in pairs)
        of_fits = statistics.median(t.fit / o.fit for t, o in pairs)
        fields = ("cpu", "peak", "read", "sine", "error", "excess")
        cells = [statistics.median(getattr(t, f) for t in good) for f in fields]
        wall, fit = (statistics.median(getattr(t, field) for t in good) for field in ("wall", "fit"))
        lines.append(
            f"| {name} | {wall:.1f} | {ratio:.1f} | {fit:.1f} | {of_fits:.1f} | {fit / least:.1f} | {cells[0]:.1f} "
            f"| {cells[1]:.2f} | {cells[2]:.1f} | {cells[3]:.1e} | {cells[4]:.1e} | {cells[5]:.1e} |"
        )
    return "\n".join(lines)


@click.command(help=__doc__)
@click.option("--size", type=click.Choice(list(SHAPES)), default="small", show_default=True)
@click.option("--folder", type=click.Path(path_type=Path), default=Path("out/bench"), show_default=True)
@click.option("--repeats", default=3, show_default=True)
@click.option("-k", "ks", multiple=True, type=int, default=(10, 50), show_default=True)
@click.option("--limit", type=float, help="Seconds after which a contender is stopped; default 300 of full, else 30.")
@click.option("--only", multiple=True, help="Contenders, beside ours; default all of `full`, else the headline.")
@click.option("--shape", "shapes", multiple=True, help="Shapes; default all of the size.")
def main(
    size: str,
    folder: Path,
    repeats: int,
    ks: tuple[int, ...],
    limit: float | None,
    only: tuple[str, ...],
    shapes: tuple[str, ...],
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    asked = only or (CONTENDERS if size == "full" else HEADLINE)
    limit = limit or _LIMITS[size]
    print(
        f"Load of the machine before: {psutil.getloadavg()[0]:.1f} on {psutil.cpu_count()} cores; {repeats} repeats.\n"
    )
    for shape in SHAPES[size]:
        if shapes and shape.name not in shapes:
            continue
        shape.exact(folder, 1)
        names = [n for n in CONTENDERS if suits(n, shape.kind, shape.limit, shape.d) and (n == "ours" or n in asked)]
        if isinstance(shape, Genotypes) and "PLINK2 approx" in names:
            shape.bed(shape.store(folder))  # before its clock starts
        for k in (k for k in ks if k < shape.known):
            runs: dict[str, list[Run]] = {name: [] for name in names}
            for _ in range(repeats):  # interleaved, so that a drifting machine is alike for all
                for name in names:
                    if not runs[name] or not runs[name][-1].failure:
                        runs[name].append(measure(name, shape, folder, k, limit))
                        time.sleep(_REST * runs[name][-1].peak)
                    else:
                        runs[name].append(runs[name][-1])
            print(table(shape, k, runs, folder) + "\n", flush=True)


if __name__ == "__main__":
    main()
