"""`walk`: the one place that turns a fold into Dask tasks.

A task reads a run of consecutive blocks into one buffer that it owns and sums them up; a tree combines the sums.
A pass over m blocks is at most m tasks and their tree, on whatever scheduler is active.
"""

from __future__ import annotations

import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import reduce
from itertools import pairwise
from typing import Any

import dask
import numpy as np
from dask.base import get_scheduler
from dask.callbacks import Callback
from dask.delayed import Delayed
from dask.highlevelgraph import HighLevelGraph
from dask.system import CPU_COUNT
from threadpoolctl import threadpool_limits

from pipeline.fold import Fold, Tally
from pipeline.matrix import Matrix
from pipeline.progress import Progress, listener

__all__ = ["Crew", "crew", "locally", "walk"]

_FAN_IN = 8  # summaries that one task combines
_LARGE_SUMMARY = 16 << 20  # from here on one summary a thread is enough; below it, more tasks balance the load
_TELL_EVERY = 0.2  # seconds between two words of a worker


@dataclass(frozen=True)
class Crew:
    """Who does the work: a `distributed.Client` or None, how many processes, threads in all and bytes a process."""

    client: Any
    workers: int
    threads: int
    memory: int | None

    @property
    def threads_each(self) -> int:
        """Threads of one worker."""
        return max(1, -(-self.threads // max(self.workers, 1)))


def crew() -> Crew:
    """The active Dask cluster, or the local scheduler that Dask's configuration names (threads by default)."""
    schedule = get_scheduler()
    client = getattr(schedule, "__self__", None)
    if client is not None and hasattr(client, "scheduler_info"):
        workers = client.scheduler_info(n_workers=-1)["workers"].values()
        memory = min((w["memory_limit"] for w in workers if w["memory_limit"]), default=None)
        return Crew(client, max(1, len(workers)), max(1, sum(w["nthreads"] for w in workers)), memory)
    if schedule is dask.local.get_sync:
        return Crew(None, 1, 1, None)
    return Crew(None, 1, dask.config.get("num_workers", None) or CPU_COUNT, None)


def locally() -> bool:
    """Whether tasks run in this process and see its memory."""
    return crew().client is None and getattr(get_scheduler(), "__module__", "") != "dask.multiprocessing"


def walk(
    matrix: Matrix, fold: Fold[Any], *, summary_bytes: int = 0, pass_number: int = 1, passes: int | None = None
) -> tuple[Any, Tally]:
    """Fold all blocks of a matrix.

    Parameters
    ----------
    matrix : Matrix
        Cut along the side that the fold walks.
    fold : Fold
        What to do with the blocks.
    summary_bytes : int
        Size of a summary: few large ones, or more small ones, are combined.
    pass_number, passes : int
        What a listener is told.

    Returns
    -------
    summary, Tally

    Raises
    ------
    PipelineError
        Whatever a block raises.
    """
    at_work = crew()
    runs = _runs(matrix.n_blocks, at_work.threads * (1 if summary_bytes > _LARGE_SUMMARY else 8))
    token = uuid.uuid4().hex
    root, graph = _graph(matrix, fold, runs, token, ship=not locally())
    heard = _listener(matrix, pass_number, passes)
    started = time.perf_counter()
    if at_work.client is not None:
        with _told_by_workers(at_work.client, token, heard):
            summary, tally = _on_cluster(at_work.client, Delayed(root, graph, layer="walk-" + token))
    else:
        sizes = {("fold-" + token, i): int(matrix.cuts[b] - matrix.cuts[a]) for i, (a, b) in enumerate(runs)}
        limit = max(1, CPU_COUNT // min(at_work.threads, len(runs)))
        with threadpool_limits(limit), _told_by_tasks(sizes, heard):
            ((summary, tally),) = dask.compute(Delayed(root, graph, layer="walk-" + token), optimize_graph=False)
    heard(int(matrix.cuts[-1] - matrix.cuts[0]))
    return summary, replace(tally, nbytes=matrix.bytes_a_pass, seconds=time.perf_counter() - started)


def summarise(fold: Fold[Any], matrix: Matrix, cuts: np.ndarray, inputs: Any, token: str) -> tuple[Any, Tally]:
    """The task: fold the blocks between the cuts, one after the other, in one buffer."""
    say = _voice(token)
    start = int(cuts[0])
    if inputs is not None:
        matrix = replace(matrix, source=matrix.source.given(matrix.side, start, inputs))
    across = matrix.shape[1 - matrix.side]
    buffer = np.empty(int(np.diff(cuts).max()) * across, fold.dtype)
    scratch: dict[str, np.ndarray] = {}
    held, reading, computing = None, 0.0, 0.0
    for a, b in pairwise(cuts.tolist()):
        t0 = time.perf_counter()
        out = buffer[: (b - a) * across].reshape((b - a, across) if matrix.side == 0 else (across, b - a))
        x = matrix.read_range(a, b, out)
        t1 = time.perf_counter()
        held = fold.block(x, (a, b), held, scratch)
        t2 = time.perf_counter()
        reading, computing = reading + t1 - t0, computing + t2 - t1
        say(b - a)
    return held, Tally(len(cuts) - 1, 0, reading, computing)


def merge(fold: Fold[Any], parts: list[tuple[Any, Tally]]) -> tuple[Any, Tally]:
    """The task: combine summaries, in the order of the rows."""
    return reduce(lambda a, b: (fold.combine(a[0], b[0]), a[1] + b[1]), parts)


def _runs(n_blocks: int, tasks: int) -> list[tuple[int, int]]:
    edges = np.unique(np.linspace(0, n_blocks, min(n_blocks, tasks) + 1).round().astype(int)).tolist()
    return list(pairwise(edges))


def _graph(
    matrix: Matrix, fold: Fold[Any], runs: list[tuple[int, int]], token: str, ship: bool
) -> tuple[Any, HighLevelGraph]:
    source, collections = matrix.source, matrix.source.collections
    ship = ship or bool(collections)
    # What is sent to every task is a small matrix: data in this process's memory goes along piece by piece.
    small = replace(matrix, source=source.hollow()) if ship else matrix
    names = {what: f"{what}-{token}" for what in ("matrix", "fold", "merge")}
    layer: dict[Any, Any] = {names["matrix"]: small, "context-" + token: fold}
    level: list[Any] = []
    for i, (a, b) in enumerate(runs):
        cuts = matrix.cuts[a : b + 1]
        inputs = source.inputs(matrix.side, int(cuts[0]), int(cuts[-1])) if ship else None
        layer[names["fold"], i] = (summarise, "context-" + token, names["matrix"], cuts, inputs, token)
        level.append((names["fold"], i))
    depth = 0
    while len(level) > 1:
        groups = [level[i : i + _FAN_IN] for i in range(0, len(level), _FAN_IN)]
        level = [(names["merge"], depth, i) for i in range(len(groups))]
        layer |= {key: (merge, "context-" + token, group) for key, group in zip(level, groups, strict=True)}
        depth += 1
    name = "walk-" + token
    return level[0], HighLevelGraph.from_collections(name, layer, dependencies=list(collections))


def _on_cluster(client: Any, job: Delayed) -> Any:
    with dask.config.set({"distributed.admin.large-graph-warning-threshold": "2GB"}):
        future = client.compute(job, optimize_graph=False)
    try:
        return future.result()
    finally:
        future.cancel()


def _listener(matrix: Matrix, pass_number: int, passes: int | None) -> Callable[[int], None]:
    hear = listener()
    done, length = 0, max(int(matrix.cuts[-1] - matrix.cuts[0]), 1)

    def heard(positions: int) -> None:
        nonlocal done
        done += positions
        if hear is not None:
            total = matrix.bytes_a_pass
            share = min(done / length, 1.0)
            blocks = round(share * matrix.n_blocks)
            hear(Progress(pass_number, passes, blocks, matrix.n_blocks, int(share * total), total))

    return heard


@contextmanager
def _told_by_tasks(sizes: dict[Any, int], heard: Callable[[int], None]) -> Iterator[None]:
    """Local schedulers: Dask says when a task is done."""

    def posttask(key: Any, *_: Any) -> None:
        if key in sizes:
            heard(sizes[key])

    heard(0)
    with Callback(posttask=posttask):
        yield


@contextmanager
def _told_by_workers(client: Any, token: str, heard: Callable[[int], None]) -> Iterator[None]:
    """A cluster: workers log how many rows they have done."""
    if listener() is None:
        yield
        return
    heard(0)
    client.subscribe_topic(token, lambda event: heard(int(event[1])))
    try:
        yield
    finally:
        client.unsubscribe_topic(token)


def _voice(token: str) -> Callable[[int], None]:
    """How a task on a worker says what it has done, a few times a second; elsewhere nothing needs saying."""
    if "distributed.worker" not in sys.modules:
        return lambda positions: None
    from distributed import get_worker

    try:
        worker = get_worker()
    except ValueError:
        return lambda positions: None
    state = [time.monotonic(), 0]

    def say(positions: int) -> None:
        state[1] += positions
        if time.monotonic() - state[0] > _TELL_EVERY:
            worker.log_event(token, int(state[1]))
            state[0], state[1] = time.monotonic(), 0

    return say
