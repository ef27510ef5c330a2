"""`walk`: the one place that turns a fold into Dask tasks.

A task reads a run of consecutive blocks into one buffer that it owns and sums them up; a tree combines the sums. Blocks
that are kept for further passes are read by tasks of their own, whose results Dask holds.
A pass over m blocks is at most m tasks and their tree, on whatever scheduler is active.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from itertools import chain, pairwise
from typing import Any

import dask
import numpy as np
from dask.delayed import Delayed
from dask.highlevelgraph import HighLevelGraph
from dask.system import CPU_COUNT
from threadpoolctl import threadpool_limits

from pipeline.allocator import memory_is_reused
from pipeline.crew import Crew, crew, locally, workers_of
from pipeline.errors import PlanError
from pipeline.fold import Fold, Preparing, Skipping, Tally, joined, ready, unmeasured, unskipped
from pipeline.folds.implicit import implicit_block, takes_implicit
from pipeline.keep import Block, Keep, Run
from pipeline.matrix import Matrix
from pipeline.telling import counted, told_by_tasks, told_by_workers, voice

__all__ = ["bytes_beside", "bytes_walked", "fan_in", "waiting_nbytes", "walk"]

_FAN_IN, _FAN_BYTES = 12, 64 << 20  # summaries that one task combines, at most, and how much they may be in all
_RUNS = 8  # of each thread: they balance the load
_SUMMARIES = 32 << 20  # bytes that those of a thread take at most: to combine large ones costs more than it helps
_MEASURING = 8  # one run in so many measures what single precision costs


def walk(
    matrix: Matrix,
    fold: Fold[Any],
    *,
    summary_bytes: int = 0,
    pass_number: int = 1,
    passes: int | None = None,
    keep: Keep | None = None,
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
    keep : Keep, optional
        Blocks that stay decoded for the next walk; they are read in the first one that can use them.

    Returns
    -------
    summary, Tally

    Raises
    ------
    PipelineError
        Whatever a block raises.
    """
    if getattr(fold, "unfilled", False):
        matrix = replace(matrix, fill=None)
    at_work = crew()
    runs = _runs(matrix, implicitly(fold, matrix), summary_bytes, at_work.threads)
    lengths = [0] * len(runs)
    if keep is not None and isinstance(fold, Preparing):
        runs = keep.as_before(matrix.side, runs)
        lengths = _kept_lengths(matrix, fold, keep, runs)
    walked = _Walk(matrix, fold, runs, lengths, fan_in(summary_bytes), uuid.uuid4().hex)
    length, nbytes = int(matrix.cuts[-1] - matrix.cuts[0]), bytes_walked(matrix, fold)
    heard = counted(pass_number, passes, matrix.n_blocks, nbytes, length)
    started = time.perf_counter()
    if at_work.client is not None:
        with told_by_workers(at_work.client, walked.token, heard):
            kept, fresh = walked.kept(keep)
            whole, each = walked.job(kept, fresh)
            summary, tally = _on_cluster(at_work.client, whole, each)
    else:
        limit = max(1, CPU_COUNT // min(at_work.threads, len(runs)))
        with threadpool_limits(limit), told_by_tasks(walked.sizes, heard):
            kept, fresh = walked.kept(keep)
            job, _ = walked.job(kept, fresh)
            how: dict[str, Any] = {"scheduler": at_work.schedule, "num_workers": at_work.threads}
            ((summary, tally),) = dask.compute(job, optimize_graph=False, **how)
    heard(length)
    if kept and not fresh:
        nbytes = _beside(matrix, runs, lengths)
    return summary, replace(tally, nbytes=nbytes, seconds=time.perf_counter() - started)


@memory_is_reused()
def summarise(
    fold: Fold[Any],
    matrix: Matrix,
    cuts: np.ndarray,
    inputs: Any,
    token: str,
    run: Run | None,
    fresh: bool,
    measuring: bool,
) -> tuple[Any, Tally]:
    """The task: fold the kept blocks of a run, then those between the cuts, read one after the other into one buffer.

    Where the run is `fresh` its reading is part of this walk, and the half of what there is to tell has been told.
    """
    fold = fold if measuring else unmeasured(fold)
    say, held, implicit = voice(token), None, implicitly(fold, matrix)
    scratch: dict[str, np.ndarray] = {}
    kept = run.blocks if run else ()
    reading, computing, done = run.seconds if run and fresh else 0.0, 0.0, 0
    for at, x, seconds in chain(kept, _blocks(fold, matrix, cuts, inputs, first=kept[0].x if kept else None)):
        started = time.perf_counter()
        held = implicit_block(fold, x, at, held) if implicit else fold.block(x, at, held, scratch)
        computing += time.perf_counter() - started
        reading += seconds
        done += 1
        say((at[1] - at[0]) / (2 if fresh and done <= len(kept) else 1))
    return held, Tally(done, 0, reading, computing)


@memory_is_reused()
def read_run(fold: Fold[Any], matrix: Matrix, cuts: np.ndarray, inputs: Any, token: str) -> Run:
    """The task: read the blocks between the cuts and make them ready, to be kept."""
    say, blocks = voice(token), []
    for block in _blocks(fold, matrix, cuts, inputs, reuse=False):
        blocks.append(block)
        say((block.at[1] - block.at[0]) / 2)
    return Run(tuple(b._replace(seconds=0.0) for b in blocks), sum(b.seconds for b in blocks))


def _blocks(
    fold: Fold[Any], matrix: Matrix, cuts: np.ndarray, inputs: Any, first: Any = None, reuse: bool = True
) -> Iterator[Block]:
    """The blocks between the cuts, made ready: in a buffer that is used again and again, or all in one."""
    if inputs is not None:
        matrix = replace(matrix, source=matrix.source.given(matrix.side, int(cuts[0]), inputs))
    if implicitly(fold, matrix):
        yield from _implicit_blocks(fold, matrix, cuts)
        return
    across = matrix.shape[1 - matrix.side]
    stretches = unskipped(fold, cuts)
    lengths = [b - a for a, b in stretches]
    buffer = np.empty((max(lengths, default=0) if reuse else sum(lengths)) * across, fold.dtype)
    end = 0  # all of them in one piece, for which the system has the largest pages
    for (a, b), length in zip(stretches, lengths, strict=True):
        started, start = time.perf_counter(), 0 if reuse else end
        end = start + length * across
        flat = buffer[start:end]
        x = matrix.read_range(a, b, flat.reshape((b - a, across) if matrix.side == 0 else (across, b - a)))
        x = ready(fold, x, (a, b), first)
        first = x if first is None else first
        yield Block((a, b), x, time.perf_counter() - started)


def _implicit_blocks(fold: Fold[Any], matrix: Matrix, cuts: np.ndarray) -> Iterator[Block]:
    """The same for blocks that are never made dense: several are read together, as little is stored of each."""
    together = cuts if isinstance(fold, Skipping) or len(cuts) < 2 else matrix.together(cuts)
    for a, b in unskipped(fold, together):
        started = time.perf_counter()
        x = matrix.read_implicit(a, b)
        yield Block((a, b), x, time.perf_counter() - started)


def implicitly(fold: Fold[Any], matrix: Matrix) -> bool:
    """Whether blocks are not made dense: neither does the matrix store them so, nor the fold ask for it."""
    return matrix.source.implicit and takes_implicit(fold)


def bytes_walked(matrix: Matrix, fold: Fold[Any]) -> int:
    """Decoded bytes of all blocks that a fold does not skip."""
    if not isinstance(fold, Skipping):
        return matrix.bytes_a_pass
    return matrix.spans_nbytes(unskipped(fold, matrix.cuts))


def _kept_lengths(matrix: Matrix, fold: Fold[Any], keep: Keep, runs: list[tuple[int, int]]) -> list[int]:
    """How many blocks of each run are kept; of a few that are taken of many, all or none."""
    if not isinstance(fold, Skipping):
        return keep.lengths(runs, matrix.kept_nbytes(fold.dtype))
    held = matrix.spans_kept_nbytes(unskipped(fold, matrix.cuts), fold.dtype)
    return [b - a if held <= keep.nbytes else 0 for a, b in runs]


def bytes_beside(matrix: Matrix, keep: Keep, dtype: np.dtype[Any], summary_bytes: int, threads: int) -> int:
    """Decoded bytes of the dense blocks that are not kept, which every walk reads."""
    runs = _runs(matrix, False, summary_bytes, threads)
    return _beside(matrix, runs, keep.lengths(runs, matrix.kept_nbytes(dtype)))


def _beside(matrix: Matrix, runs: list[tuple[int, int]], lengths: list[int]) -> int:
    parts = (matrix.cuts[a + kept : b + 1] for (a, b), kept in zip(runs, lengths, strict=True))
    return sum(matrix.source.touched(matrix.side, cuts) for cuts in parts if len(cuts) > 1)


def runs_each(summary_bytes: int) -> int:
    """How many runs of blocks a thread gets in a pass."""
    return max(1, min(_RUNS, _SUMMARIES // max(summary_bytes, 1)))


def fan_in(summary_bytes: int) -> int:
    """How many summaries one task combines: two, where they are large."""
    return int(np.clip(_FAN_BYTES // max(summary_bytes, 1), 2, _FAN_IN))


def waiting_nbytes(matrix: Matrix, summary_bytes: int, at_work: Crew) -> int:
    """Bytes of summaries of a worker beside those its threads are at: that wait to be combined, or are combined.

    Those of runs stay to the end on a cluster, where they are combined with those of other workers. Where each block
    that is sent is a task, they wait for their fellows on every level of the tree.
    """
    fan, waiting = fan_in(summary_bytes), at_work.threads_each * (runs_each(summary_bytes) - 1)
    together = fan + 1 if at_work.client is not None else 2
    if _ships(matrix):
        depth = int(np.ceil(np.log(max(matrix.n_blocks, 2)) / np.log(fan)))
        waiting = -(-min((fan - 1) * depth, matrix.n_blocks) // at_work.workers)
        together = fan + 1
    return summary_bytes * (waiting + together)


def merge(fold: Fold[Any], parts: list[tuple[Any, Tally]]) -> tuple[Any, Tally]:
    """The task: combine summaries, in the order of the rows."""
    return reduce(lambda a, b: (joined(fold, a[0], b[0]), a[1] + b[1]), parts)


def _ships(matrix: Matrix) -> bool:
    """Whether entries are sent to the tasks: those in this process's memory, and the chunks of Dask arrays."""
    source = matrix.source
    return bool(source.collections) or (source.held and not locally())


def _runs(matrix: Matrix, implicit: bool, summary_bytes: int, threads: int) -> list[tuple[int, int]]:
    """First and last + 1 block of each task."""
    n_blocks, each = matrix.n_blocks, runs_each(summary_bytes)
    if implicit and 32 * threads * summary_bytes > matrix.bytes_a_pass:
        each = 1  # where little is stored, summaries are soon the larger part
    # What is sent to a task is in memory as a whole before it starts: one block, then, unless little is stored of it.
    sent = _ships(matrix) and (bool(matrix.source.collections) or not implicit)
    tasks = n_blocks if sent else threads * each
    edges = np.unique(np.linspace(0, n_blocks, min(n_blocks, tasks) + 1).round().astype(int)).tolist()
    return list(pairwise(edges))


@dataclass(frozen=True)
class _Walk:
    """A walk about to become tasks: runs of blocks, in part kept, and the names that its tasks have."""

    matrix: Matrix
    fold: Fold[Any]
    runs: list[tuple[int, int]]
    lengths: list[int]
    """Blocks of each run that are kept."""
    fan: int
    token: str

    @property
    def sizes(self) -> dict[Any, float]:
        """Positions of the walked side that are done when a task is."""
        cuts = self.matrix.cuts
        sizes = {("fold-" + self.token, i): float(cuts[b] - cuts[a]) for i, (a, b) in enumerate(self.runs)}
        for i, ((a, _), kept) in enumerate(zip(self.runs, self.lengths, strict=True)):
            half = float(cuts[a + kept] - cuts[a]) / 2
            sizes |= {("read-" + self.token, i): half, ("fold-" + self.token, i): sizes["fold-" + self.token, i] - half}
        return sizes

    @cached_property
    def ships(self) -> bool:
        """`_ships` of the matrix, which asks the scheduler: not once for every task."""
        return _ships(self.matrix)

    def kept(self, keep: Keep | None) -> tuple[dict[int, Delayed], bool]:
        """The runs of blocks that are kept, and whether they are read in this walk."""
        if keep is None or not any(self.lengths) or not isinstance(self.fold, Preparing):
            return {}, False
        cut = self.matrix.side, tuple(self.runs), tuple(self.lengths)
        made = None if implicitly(self.fold, self.matrix) else (self.fold.readiness, self.fold.dtype)
        return keep.take((made, cut), self._read)

    def _read(self) -> dict[int, Delayed]:
        name = "read-" + self.token
        layer = self._shared()
        for i, ((a, _), kept) in enumerate(zip(self.runs, self.lengths, strict=True)):
            if kept:
                layer[name, i] = (read_run, *self._stretch(a, a + kept))
        graph = self._collected(name, layer)
        numbers = [i for i, kept in enumerate(self.lengths) if kept]
        at_work = crew()
        places: list[dict[str, Any]] = [{"scheduler": at_work.schedule, "num_workers": at_work.threads}]
        runs: dict[int, Delayed] = {}
        if at_work.client is not None:  # the same number to each worker, as each has so much room; another may stand in
            addresses = workers_of(at_work.client)
            places = [{"workers": [address], "allow_other_workers": True} for address in addresses]
        with _large_graphs():
            for first, where in enumerate(places):
                mine = numbers[first :: len(places)]
                jobs = (Delayed((name, i), graph, layer=name) for i in mine)
                runs |= zip(mine, dask.persist(*jobs, optimize_graph=False, **where), strict=True)
        return runs

    def job(self, kept: Mapping[int, Delayed], fresh: bool) -> tuple[Delayed, list[Delayed]]:
        """The summary and the tally of all blocks, and those of each run where these are few, or asked for."""
        name, merges = "fold-" + self.token, "merge-" + self.token
        layer = self._shared()
        level: list[Any] = []
        for i, (a, b) in enumerate(self.runs):
            run = kept[i].key if i in kept else None
            layer[name, i] = (summarise, *self._stretch(a + self.lengths[i], b), run, fresh, i % _MEASURING == 0)
            level.append((name, i))
        depth = 0
        while len(level) > 1:
            groups = [level[i : i + self.fan] for i in range(0, len(level), self.fan)]
            level = [(merges, depth, i) for i in range(len(groups))]
            layer |= {key: (merge, "context-" + self.token, group) for key, group in zip(level, groups, strict=True)}
            depth += 1
        graph = self._collected("walk-" + self.token, layer, *kept.values())
        keys = [level[0]] if self.ships else [level[0], *((name, i) for i in range(len(self.runs)))]
        whole, *each = (Delayed(key, graph, layer="walk-" + self.token) for key in keys)
        return whole, each

    def _shared(self) -> dict[Any, Any]:
        """What every task gets: the fold, and a matrix that is small."""
        matrix = replace(self.matrix, source=self.matrix.source.hollow()) if self.ships else self.matrix
        return {"matrix-" + self.token: matrix, "context-" + self.token: self.fold}

    def _stretch(self, a: int, b: int) -> tuple[Any, ...]:
        """The arguments of a task for blocks [a, b)."""
        cuts, source = self.matrix.cuts[a : b + 1], self.matrix.source
        sent = self.ships and unskipped(self.fold, cuts)
        inputs = source.inputs(self.matrix.side, int(cuts[0]), int(cuts[-1])) if sent else None
        return "context-" + self.token, "matrix-" + self.token, cuts, inputs, self.token

    def _collected(self, name: str, layer: dict[Any, Any], *kept: Delayed) -> HighLevelGraph:
        return HighLevelGraph.from_collections(name, layer, dependencies=[*self.matrix.source.collections, *kept])


@contextmanager
def _large_graphs() -> Iterator[None]:
    """Data in this process's memory travels with the graph, however large it is."""
    with dask.config.set({"distributed.admin.large-graph-warning-threshold": "2GB"}):
        yield


def _on_cluster(client: Any, job: Delayed, runs: list[Delayed]) -> Any:
    """The result of a job; those of its runs stay until then, so that a lost worker costs its own runs and no others.

    They are few: `runs_each` of a thread.
    """
    from distributed import KilledWorker
    from distributed.comm import CommClosedError

    with _large_graphs():
        future, *held = client.compute([job, *runs], optimize_graph=False)
    try:
        return future.result()
    except (CancelledError, CommClosedError) as error:
        raise PlanError(
            "the scheduler was lost: run the same again on another one; with a checkpoint it goes on from there"
        ) from error
    except KilledWorker as error:
        raise PlanError(
            f"the work was given up after {error.allowed_failures + 1} workers were lost at it: look at their memory; "
            "with a checkpoint the same run goes on from there"
        ) from error
    finally:
        future.cancel()
        for run in held:
            run.release()
