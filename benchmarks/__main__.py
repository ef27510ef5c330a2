"""Run the benchmark: every contender on every shape in a process of its own, interleaved, with medians and ratios."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import psutil

from benchmarks.contenders import CONTENDERS
from benchmarks.machine import bound
from benchmarks.shapes import SHAPES, Shape


@dataclass(frozen=True)
class Run:
    """One process: seconds with imports, CPU seconds, peak GB of its tree, GB read, and how good the answer is."""

    wall: float
    cpu: float
    peak: float
    read: float
    sine: float
    error: float
    failure: str = ""


def measure(name: str, shape: Shape, folder: Path, k: int, limit: float) -> Run:
    """Run a contender once; what fails or takes longer than the limit (seconds) is told, not raised."""
    values, vectors = shape.exact(folder, k)
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "answer.npz"
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.contenders", name, str(shape.store(folder))]
        started = time.perf_counter()
        process = psutil.Popen([*command, str(k), str(out)], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
        watch = Watch(process)
        try:
            _, stderr = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            return Run(limit, 0, watch.stop(), watch.read, 1, 1, f"stopped after {limit:.0f} s")
        wall = time.perf_counter() - started
        peak = watch.stop()
        if process.returncode:
            return Run(wall, watch.cpu, peak, watch.read, 1, 1, stderr.decode().strip().splitlines()[-1][:120])
        with np.load(out) as answer:
            got, components = answer["values"][:k], answer["components"][:k].astype(np.float64)
    q = np.linalg.qr(components.T)[0].T
    sine = float(np.linalg.norm(q - (q @ vectors.T) @ vectors, 2))
    return Run(wall, watch.cpu, peak, watch.read, sine, float(np.max(np.abs(got / values[:k] - 1))))


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


def table(shape: Shape, k: int, runs: dict[str, list[Run]], best: dict[str, float]) -> str:
    """One shape as Markdown: medians, and ratios to ours of the same run."""
    lines = [
        f"**{shape.name}**: {shape.n:,} x {shape.d:,} float32, chunks {shape.chunks[0]:,} x {shape.chunks[1]:,}, "
        f"k = {k}; one read {best['read']:.2f} s, one multiplication {best['multiply']:.2f} s",
        "",
        "| | wall s | over ours | CPU s | peak GB | GB read | sin of angle | worst eigenvalue error |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, tries in runs.items():
        good = [t for t in tries if not t.failure]
        if not good:
            lines.append(f"| {name} | {tries[0].failure} | | | | | | |")
            continue
        ratio = statistics.median(t.wall / o.wall for t, o in zip(tries, runs["ours"], strict=True))
        cells = [statistics.median(getattr(t, f) for t in good) for f in ("cpu", "peak", "read", "sine", "error")]
        wall = statistics.median(t.wall for t in good)
        lines.append(
            f"| {name} | {wall:.1f} | {ratio:.1f} | {cells[0]:.1f} | {cells[1]:.2f} | {cells[2]:.2f} "
            f"| {cells[3]:.1e} | {cells[4]:.1e} |"
        )
    return "\n".join(lines)


@click.command(help=__doc__)
@click.option("--size", type=click.Choice(list(SHAPES)), default="small", show_default=True)
@click.option("--folder", type=click.Path(path_type=Path), default=Path("out/bench"), show_default=True)
@click.option("--repeats", default=3, show_default=True)
@click.option("-k", "ks", multiple=True, type=int, default=(10, 50), show_default=True)
@click.option("--limit", default=300.0, show_default=True, help="Seconds after which a contender is stopped.")
@click.option("--only", multiple=True, help="Contenders, beside ours; default all.")
def main(size: str, folder: Path, repeats: int, ks: tuple[int, ...], limit: float, only: tuple[str, ...]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = ["ours", *(n for n in CONTENDERS if n != "ours" and (not only or n in only))]
    print(
        f"Load of the machine before: {psutil.getloadavg()[0]:.1f} on {psutil.cpu_count()} cores; {repeats} repeats.\n"
    )
    for shape in SHAPES[size]:
        shape.exact(folder, 1)
        for k in ks:
            best = bound(shape.store(folder), k)
            runs: dict[str, list[Run]] = {name: [] for name in names}
            for _ in range(repeats):  # interleaved, so that a drifting machine is alike for all
                for name in names:
                    if not runs[name] or not runs[name][-1].failure:
                        runs[name].append(measure(name, shape, folder, k, limit))
                    else:
                        runs[name].append(runs[name][-1])
            print(table(shape, k, runs, best) + "\n", flush=True)


if __name__ == "__main__":
    main()
