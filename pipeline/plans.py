"""`plan`: what a fit will read, hold and take, before anything runs; and which solver it will be."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from dask.utils import format_bytes, parse_bytes

from pipeline.errors import InputError, PlanError
from pipeline.matrix import Matrix, open_matrix
from pipeline.solvers import SOLVERS, Settings, Solver
from pipeline.solvers.solver import Cost
from pipeline.sources import ROWS
from pipeline.walk import Crew, crew

__all__ = ["Plan", "Prepared", "plan", "prepare", "prepare_solver"]

# What a thread of today's machines does, for choosing between solvers; only ratios matter.
_READ, _FLOPS = 0.6e9, {4: 5e10, 8: 2.5e10}
_BLAS_BYTES = 32 << 20  # that OpenBLAS works in, a thread
_EXACT = 3.0  # an exact solver may take so much longer than a randomized one


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

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        least = "at least " if self.tol is not None or self.open_ended else ""
        limit = f" of {format_bytes(self.memory_limit)}" if self.memory_limit else ""
        lines = {
            "solver": f"{self.solver}: {self.why}",
            "passes": f"{least}{self.passes}" + (f", until the angle is certified to {self.tol:g}" if self.tol else ""),
            "bytes read": f"{least}{format_bytes(self.bytes_read)}",
            "from": self.reader,
            "peak memory": f"{format_bytes(self.peak_memory)}{limit} a worker, beside the interpreter",
            "blocks": f"{self.n_blocks} of up to {self.block_rows} {self.side}, {self.blocks_kept} kept between passes",
            "workers": f"{self.workers} with {self.threads} threads in all",
            "time": f"about {self.seconds:.2g} s",
        }
        return "\n".join(f"{name:12s} {text}" for name, text in lines.items())


@dataclass(frozen=True)
class Prepared:
    """A plan with what it is carried out with: the matrix, cut as planned, and the solver."""

    plan: Plan
    matrix: Matrix
    solver: Solver[Any]


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


def prepare(X: Matrix, settings: Settings, solver: str, memory_limit: int | str | None) -> Prepared:
    """Choose a solver and the height of the blocks; raises as `plan` does."""
    if solver != "auto" and solver not in SOLVERS:
        raise InputError(f"solver={solver!r}: choose 'auto' or one of {', '.join(map(repr, SOLVERS))}")
    settings.rank.most(*X.shape)
    at_work = crew()
    limit = _limit(memory_limit, at_work)
    names = list(SOLVERS) if solver == "auto" else [solver]
    fits, refused = [], []
    for name in names:
        try:
            fits.append(_fit(X, SOLVERS[name](X, settings), at_work, limit))
        except PlanError as error:
            refused.append(error)
    if not fits:
        raise min(refused, key=lambda error: error.needed or 0)
    exact = [p for p in fits if p.solver.exact]
    best = min(fits, key=lambda p: p.plan.seconds)
    if exact and (settings.rank.wanted is None or min(p.plan.seconds for p in exact) <= _EXACT * best.plan.seconds):
        best = min(exact, key=lambda p: p.plan.seconds)
    others = ", ".join(f"{p.solver.name} about {p.plan.seconds:.2g} s" for p in fits if p is not best)
    why = _why(best.solver.name, X) if solver == "auto" else "as asked for"
    if solver == "auto" and others:
        why += f" ({others})"
    return Prepared(_with(best.plan, why), best.matrix, best.solver)


def prepare_solver(X: Matrix, solver: Solver[Any], memory_limit: int | str | None, why: str) -> Prepared:
    """The height of the blocks for a solver that is chosen already; raises as `plan` does."""
    at_work = crew()
    found = _fit(X, solver, at_work, _limit(memory_limit, at_work))
    return Prepared(_with(found.plan, why), found.matrix, found.solver)


def _with(found: Plan, why: str) -> Plan:
    return Plan(**{**asdict(found), "why": why})


def _why(name: str, X: Matrix) -> str:
    n, d = X.shape
    return {
        "gram": f"{d} features make a {d} x {d} matrix of second moments, exact in one pass",
        "dual_gram": f"{n} samples make a {n} x {n} matrix of inner products, exact in two passes",
        "krylov": "both sides are long, and it takes the fewest passes",
        "randomized": "both sides are long, and a Krylov basis would not fit in memory",
    }[name]


def _fit(X: Matrix, solver: Solver[Any], at_work: Crew, limit: int | None) -> Prepared:
    cost = solver.cost(X)
    walked = X if cost.side == ROWS else X.T
    threads, across = at_work.threads_each, max(1, X.shape[1 - cost.side])
    slab = 2 * 8 * 256 * across if X.work_dtype == np.float32 else 0  # where rounding is measured in float64
    fixed = threads * (cost.summary_bytes + cost.scratch_bytes + slab + _BLAS_BYTES) + 3 * cost.summary_bytes
    fixed += cost.client_bytes if at_work.client is None else cost.summary_bytes
    for matrix in _cuttings(walked):
        block = matrix.block_height * across * X.work_dtype.itemsize
        chunks = max(block, matrix.bytes_a_pass // matrix.n_blocks)
        peak = fixed + threads * (block + 2 * chunks)  # a block, the chunks that it lies in, and those encoded
        if limit is None or peak <= limit:
            break
    else:
        raise PlanError(
            f"{solver.name} needs {format_bytes(peak)} a worker and has {format_bytes(limit)}: "
            f"set memory_limit to {_rounded_up(peak)} or more, use fewer threads a worker, or fewer components",
            peak,
        )
    passes = cost.passes + (solver.settings.missing == "mean")  # one more for the means
    seconds = _seconds(matrix, cost, at_work)
    found = Plan(
        solver=solver.name,
        why="",
        passes=passes,
        bytes_read=passes * matrix.bytes_a_pass,
        peak_memory=int(peak),
        blocks_kept=0,
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
    )
    return Prepared(found, matrix if cost.side == ROWS else matrix.T, solver)


def _cuttings(X: Matrix) -> Iterator[Matrix]:
    """The matrix in ever lower blocks."""
    yield X
    across = max(1, X.shape[1 - X.side]) * X.work_dtype.itemsize
    target = X.block_height * across // 2
    while target >= across:
        yield X.cut_to(target)
        target //= 2


def _rounded_up(nbytes: int) -> str:
    unit, name = (10**6, "MB") if nbytes > 10**7 else (10**3, "kB")
    return f"{-(-nbytes // unit)} {name}"


def _seconds(X: Matrix, cost: Cost, at_work: Crew) -> float:
    reading = X.bytes_a_pass / _READ
    computing = cost.flops / _FLOPS[X.work_dtype.itemsize]
    short = cost.summary_bytes / 8
    finishing = 3 * short**1.5 / _FLOPS[8] if cost.passes < 3 else 0.0  # an eigendecomposition of the square matrix
    return cost.passes * (reading + computing) / at_work.threads + finishing + 0.01


def _limit(memory_limit: int | str | None, at_work: Crew) -> int | None:
    if memory_limit is None:
        if at_work.client is not None:
            return at_work.memory
        from distributed.system import MEMORY_LIMIT

        return int(MEMORY_LIMIT)
    try:
        limit = parse_bytes(memory_limit)
    except (ValueError, TypeError) as error:
        raise InputError(f"memory_limit={memory_limit!r}: give bytes, or a size such as '2GB'") from error
    if limit <= 0:
        raise InputError(f"memory_limit={memory_limit!r} must be positive")
    return int(limit)
