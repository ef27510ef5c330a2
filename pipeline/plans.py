"""`plan`: what a fit will read, hold and take, before anything runs; and which solver it will be."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from dask.utils import format_bytes

from pipeline import speed
from pipeline.crew import Crew, locally
from pipeline.errors import PlanError
from pipeline.folds import spans
from pipeline.keep import Keep
from pipeline.matrix import Matrix, open_matrix
from pipeline.room import Room
from pipeline.solvers import SOLVERS, Settings, Solver, candidates
from pipeline.solvers.em import EM
from pipeline.solvers.iteration import Iteration
from pipeline.solvers.krylov import Krylov
from pipeline.solvers.solver import Cost
from pipeline.sources import ROWS
from pipeline.sources.stream import Stream
from pipeline.walk import bytes_beside

__all__ = ["Plan", "Prepared", "plan", "prepare", "prepare_solver"]

_SPARSE_FLOPS = 1e9  # of a thread, whatever the machine's dense rate is
_KEPT_UP = 1.1  # memory comes in arenas, in pieces that do not fit together
_LARGE, _TRIED = 1 << 30, 4  # bytes that may take seconds to be handed out; the part of them that is tried
_AGAIN = 16  # times that a chunk may be decoded in a pass: a fit that takes more would not end
# An exact solver may take so much longer than a randomized one; more where the spectrum says how many components it is,
# as that one would have to find all of them, and as many passes are foretold as for a few.
_EXACT, _EXACT_OPEN = 3.0, 10.0


@dataclass(frozen=True)
class Plan:
    """What a fit will do: `passes`, `bytes_read` and `peak_memory` (a worker, beside the interpreter) are promises."""

    solver: str
    why: str
    passes: int
    bytes_read: int
    peak_memory: int
    blocks_kept: int
    seconds: float
    n_blocks: int
    block_rows: int
    side: str
    reader: str
    memory_limit: int | None
    workers: int
    threads: int
    tol: float | None
    open_ended: bool = False
    sample_bytes: int = 0
    """Of `bytes_read`: those of a sample of the rows, which the passes begin with."""
    slow_memory: bool = False
    """Whether no more blocks are kept for the reason that reading them again takes less time than new memory does."""
    idle_threads: int = 0
    """Threads of this process that have no block, as memory does not suffice for that."""

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        # Passes that meet a tol may be fewer than those of a solver without, or more.
        near = "about " if self.tol is not None else "at least " if self.open_ended else ""
        limit = f" of {format_bytes(self.memory_limit)}" if self.memory_limit else ""
        kept = f"{self.blocks_kept} kept between passes" + ", no more as new memory is slow" * self.slow_memory
        lines = {
            "solver": f"{self.solver}: {self.why}",
            "passes": f"{near}{self.passes}"
            + (f", after {format_bytes(self.sample_bytes)} of a sample" if self.sample_bytes else "")
            + (f", until the angle is certified to {self.tol:g}" if self.tol else ""),
            "bytes read": f"{near}{format_bytes(self.bytes_read)}",
            "from": self.reader,
            "peak memory": f"{format_bytes(self.peak_memory)}{limit} a worker, beside the interpreter",
            "blocks": f"{self.n_blocks} of up to {self.block_rows} {self.side}, {kept}",
            "workers": f"{self.workers} with {self.threads} threads in all"
            + (f", {self.idle_threads} more left idle for lack of memory" if self.idle_threads else ""),
            "time": f"about {self.seconds:.2g} s",
        }
        return "\n".join(f"{name:12s} {text}" for name, text in lines.items())


@dataclass(frozen=True)
class Prepared:
    """A plan with what it is carried out with: the matrix, cut as planned, the solver, and bytes to keep in all."""

    plan: Plan
    matrix: Matrix
    solver: Solver[Any]
    keep: int = 0


def plan(X: Any, model: Any) -> Plan:
    """What `model.fit(X)` will do on the active cluster or scheduler; nothing is read.

    Parameters
    ----------
    X : Matrix or anything that `open_matrix` opens
    model : PCA, TruncatedSVD or RobustPCA
        Fitted or not.

    Returns
    -------
    Plan

    Raises
    ------
    InputError
        When the settings do not fit the matrix.
    PlanError
        When the memory does not suffice; it names the smallest limit that would do.

    Examples
    --------
    >>> import numpy as np
    >>> from pipeline import PCA
    >>> p = plan(np.zeros((1000, 20)), PCA(n_components=3))
    >>> p.solver, p.passes, p.bytes_read
    ('gram', 1, 160000)
    """
    return model.prepare(open_matrix(X)).plan


def prepare(
    X: Matrix,
    settings: Settings,
    solver: str,
    memory_limit: int | str | None,
    scores: bool = False,
    keeping: bool = True,
) -> Prepared:
    """Choose a solver, the height of the blocks and how many are kept; raises as `plan` does.

    With `scores` one walk more, over what is kept, will follow those of the solver; without `keeping` nothing is.
    """
    settings.rank.most(*X.shape)
    room = Room.given(memory_limit, scores, keeping)
    names = candidates(X, settings, solver)
    fits, refused = [], []
    for name in names:
        try:
            found: Any = SOLVERS[name](X, settings)
            if settings.missing == "em":
                found = EM(found)
            fits.append(_best_fit(X, found, room))
        except PlanError as error:
            refused.append(error)
    if not fits:
        raise min(refused, key=lambda error: error.needed or 0)
    if any(p.solver.name == "krylov" for p in fits) and solver == "auto":  # fewer passes, and fewer columns in all
        fits = [p for p in fits if p.solver.name != "randomized"]
    exact = [p for p in fits if getattr(p.solver, "inner", p.solver).exact]
    best = min(fits, key=lambda p: p.plan.seconds)
    longer = _EXACT_OPEN if settings.rank.open else _EXACT
    if exact and (settings.rank.wanted is None or min(p.plan.seconds for p in exact) <= longer * best.plan.seconds):
        best = min(exact, key=lambda p: p.plan.seconds)
    others = ", ".join(f"{p.solver.name} about {p.plan.seconds:.2g} s" for p in fits if p is not best)
    why = _why(best.solver.name, X) if solver == "auto" else "as asked for"
    if solver == "auto" and others:
        why += f" ({others}; {speed.in_words(X)})"
    return replace(best, plan=replace(best.plan, why=why))


def prepare_solver(
    X: Matrix, solver: Solver[Any], memory_limit: int | str | None, why: str, scores: bool = False
) -> Prepared:
    """The height of the blocks for a solver that is chosen already; raises as `plan` does."""
    found = _best_fit(X, solver, Room.given(memory_limit, scores))
    return replace(found, plan=replace(found.plan, why=why))


def _why(name: str, X: Matrix) -> str:
    n, d = X.shape
    return {
        "gram": f"{d} features make a {d} x {d} matrix of second moments, exact in one pass",
        "dual_gram": f"{n} samples make a {n} x {n} matrix of inner products, exact in two passes",
        "krylov": "both sides are long, and it takes the fewest passes",
        "randomized": "both sides are long, and a Krylov basis would not fit in memory",
        "single_pass": "it can be read only once",
    }[name]


def _best_fit(X: Matrix, solver: Solver[Any], room: Room) -> Prepared:
    """`_suited` with all threads, or with as many as there is room for, before chunks are decoded again and again.

    The threads of a cluster are as they are.
    """
    while room.crew.client is None and room.crew.threads > 1:
        with suppress(PlanError):
            return _suited(X, solver, room, 1)
        room = room.with_fewer_threads()
    return _suited(X, solver, room, _AGAIN)


def _suited(X: Matrix, solver: Solver[Any], room: Room, again: int) -> Prepared:
    """`_fit`, with narrow blocks where a solver can have them and passes after the first read nothing.

    Where there is no room for wide ones it does without.
    """
    if room.keeping and isinstance(solver, Krylov) and (lanczos := solver.narrowed(X)) is not None:
        with suppress(PlanError):
            narrow = _fit(X, lanczos, room, again)
            if narrow.plan.blocks_kept == narrow.plan.n_blocks or (X.source.held and locally()):
                return narrow
    try:
        return _fit(X, solver, room, again)
    except PlanError:
        if isinstance(solver, Krylov) and solver.may_be_wide(X):
            return _fit(X, solver.slender(X), room, again)
        raise


@dataclass(frozen=True)
class _Sample:
    """What a start is found from: bytes that are read for a walk over it, and `held` while it is kept; the walks."""

    nbytes: int = 0
    held: int = 0
    walks: int = 0

    @classmethod
    def of(cls, X: Matrix, cost: Cost, dtype: np.dtype[Any]) -> _Sample:
        if cost.sample is None:
            return cls()
        taken = spans(cost.sample)
        return cls(X.spans_nbytes(taken), X.spans_kept_nbytes(taken, dtype), cost.sample_walks)

    def read(self, keep: int) -> int:
        """Bytes of all walks, where so many are kept."""
        return self.nbytes * (1 if self.held <= keep else self.walks)


def _fit(X: Matrix, solver: Solver[Any], room: Room, again: int) -> Prepared:
    side, at_work, limit = solver.cost(X).side, room.crew, room.limit
    peaks: list[int] = []
    for matrix in _cuttings(X if side == ROWS else X.T, again):
        cut = matrix if side == ROWS else matrix.T  # as the solver gets it: how it begins may depend on the blocks
        cost = solver.cost(cut).entries_of(X)
        peak = room.peak(matrix, solver, cost)
        if limit is None or peak <= limit:
            break
        peaks.append(peak)
    else:
        least = min(peaks)  # not of the lowest blocks: where there are more, more summaries wait for each other
        raise PlanError(
            f"{solver.name} needs {format_bytes(least)} a worker and has {format_bytes(limit)}: "
            f"set memory_limit to {_rounded_up(least)} or more, use fewer threads a worker, or fewer components",
            least,
        )
    passes = cost.passes + (solver.settings.missing != "error")  # one more for the means
    further = cost.passes - 1 + room.scores  # passes that can do with what is kept
    dtype = cost.dtype or X.block_dtype
    worth, held = room.keeping and further > 0, matrix.kept_nbytes(dtype)
    kept = min(room.spare(X, peak) // held, matrix.n_blocks) if worth else 0
    new = _new_memory(X, kept * held)
    known = solver.settings.tol is None and not cost.open_ended  # how many passes there will be
    slow = known and 1 / new > further / speed.reading(X)[0]
    sample = _Sample.of(matrix, cost, dtype)
    if slow:  # but for a sample, which is walked several times
        kept = min(kept, -(-sample.held // held))
    if X.source.implicit and kept < matrix.n_blocks:  # a chunk holds entries of many blocks: all are kept, or none
        kept = 0
    peak += int(_KEPT_UP * -(-kept // at_work.workers) * held)
    if kept == matrix.n_blocks and not X.source.implicit:  # they are read into what is kept, and no other block is
        peak -= int(room.threads(matrix) * matrix.block_nbytes(dtype))
    whole = beside = matrix.bytes_a_pass
    if kept:
        beside = bytes_beside(matrix, Keep(kept * held), dtype, cost.summary_bytes, at_work.threads)
    sampled = sample.read(kept * held)
    seconds = _seconds(matrix, solver, cost, at_work, kept, sampled) + kept * held / new / at_work.threads
    found = Plan(
        solver=solver.name,
        why="",
        passes=passes,
        bytes_read=sampled + (passes - cost.passes + 1) * whole + (cost.passes - 1) * beside,
        peak_memory=peak,
        blocks_kept=kept,
        seconds=seconds,
        n_blocks=matrix.n_blocks,
        block_rows=matrix.block_height,
        side="rows" if cost.side == ROWS else "columns",
        reader=X.source.layout,
        memory_limit=limit,
        workers=at_work.workers,
        threads=at_work.threads,
        tol=solver.settings.tol,
        open_ended=cost.open_ended,
        sample_bytes=sampled,
        slow_memory=slow,
        idle_threads=room.idle,
    )
    return Prepared(found, cut, solver, kept * held)


def _cuttings(X: Matrix, again: int) -> Iterator[Matrix]:
    """The matrix in ever lower blocks, as long as a pass decodes no more than so many times the whole."""
    yield X
    across = max(1, X.shape[1 - X.side]) * X.work_dtype.itemsize
    target = X.block_height * across // 2
    while target >= across:
        lower = X.cut_to(target)
        if lower.bytes_a_pass > again * X.bytes_a_pass:
            return
        yield lower
        target //= 2


def _rounded_up(nbytes: int) -> str:
    unit, name = (10**6, "MB") if nbytes > 10**7 else (10**3, "kB")
    return f"{-(-nbytes // unit)} {name}"


def _new_memory(X: Matrix, nbytes: int) -> float:
    """Bytes a second and thread of the memory that blocks are to be kept in, where it matters and can be known.

    The workers of a cluster may be other machines.
    """
    asked = nbytes > _LARGE and locally() and not X.source.held
    return speed.handing_out(min(nbytes // _TRIED, _LARGE)) if asked else np.inf


def _seconds(X: Matrix, solver: Solver[Any], cost: Cost, at_work: Crew, kept: int, sample: int) -> float:
    if isinstance(X.source, Stream):
        return 0.0  # its length is not known
    reads = 1 + (cost.passes - 1) * (1 - kept / X.n_blocks)
    reading, complex_ = (reads * X.bytes_a_pass + sample) / speed.reading(X)[0], X.work_dtype.kind == "c"
    walks = float(cost.passes)
    if cost.sample is not None:
        walks += cost.sample_walks * float(np.diff(spans(cost.sample)).sum()) / X.shape[0]
    if X.source.implicit:
        computing = cost.flops * X.density / _SPARSE_FLOPS
    else:  # a complex multiplication is four
        real = X.block_dtype.itemsize // (2 if complex_ else 1)
        computing = cost.flops * (4 if complex_ else 1) / speed.multiplying(real)
    short = cost.summary_bytes / 8
    square = cost.passes < 3 and not isinstance(solver, Iteration)
    finishing = 3 * short**1.5 / speed.multiplying(8) if square else 0.0  # eigenvectors of the square matrix
    return (reading + walks * computing) / at_work.threads + finishing + 0.01
